"""When and where a job that fits nowhere now could start at the earliest, if all that runs uses its limit."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from heapq import heappop, heappush
from operator import itemgetter

from scheduler.planner.ask import Ask
from scheduler.planner.host import Host
from scheduler.planner.hosts import Hosts
from scheduler.planner.outcome import Seat
from scheduler.planner.snapshot import Waiting


@dataclass(frozen=True, slots=True)
class Start:
    """A job's start, `at` a time or at none that is known (infinity), with a seat for each member."""

    at: float
    seats: tuple[tuple[Host, Seat], ...]


class Horizon:
    """Finds earliest starts. Hosts are sorted once for an ask by when the first member fits, which only gets later."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._sorted: dict[tuple[Ask, str], list[tuple[float, Host]]] = {}

    def earliest(self, job: Waiting, ask: Ask, preferred: Collection[str]) -> Start | None:
        """The earliest start beside all reservations made so far; None if what is not reserved is always too little.

        Of the hosts that are ready by then it takes those in `preferred`, where the job has gathered room before, then
        those that are ready last, so that what is free already serves others until it is needed (those that are ready
        first where some never are); hosts to avoid come last of all.
        """
        most = job.max_per_node or job.members
        ready: dict[Host, tuple[float, int]] = {}
        found, at = 0, math.inf
        for time, times, host in self._rises(ask, job.runner):
            if found >= job.members and time > at:
                break
            before = ready.get(host, (0.0, 0))[1]
            if min(times, most) > before:
                at = time if found < job.members else at
                found += min(times, most) - before
                ready[host] = time, min(times, most)
        if found < job.members:
            return None

        def rank(entry: tuple[Host, tuple[float, int]]) -> tuple[bool, bool, float, int]:
            host, (time, times) = entry
            return host.view.id in job.avoid, host.view.id not in preferred, time if at == math.inf else -time, -times

        seats: list[tuple[Host, Seat]] = []
        for host, (_time, times) in sorted(ready.items(), key=rank):
            seats += _seats(host, ask, min(times, job.members - len(seats)))
            if len(seats) == job.members:
                break
        return Start(at, tuple(seats))

    def _rises(self, ask: Ask, runner: str) -> Iterator[tuple[float, int, Host]]:
        """From which time on how many fit on which host, in the order of time; looks at no more hosts than needed."""
        first = self._sorted.get((ask, runner))
        if first is None:
            able = ((host.steps(ask), host) for host in self._hosts.all if runner in host.view.runners)
            first = sorted(((steps[0][0], host) for steps, host in able if steps), key=itemgetter(0))
            self._sorted[ask, runner] = first
        later: list[tuple[float, int, int, Host]] = []
        for time, host in first:
            while later and later[0][0] < time:
                rise = heappop(later)
                yield rise[0], rise[2], rise[3]
            for then, times in host.steps(ask):
                heappush(later, (then, host.at, times, host))
        while later:
            rise = heappop(later)
            yield rise[0], rise[2], rise[3]


def _seats(host: Host, ask: Ask, times: int) -> list[tuple[Host, Seat]]:
    uuids = [uuid for _time, uuid in host.coming(ask)] if ask.gpus else []
    return [(host, Seat(host.view.id, tuple(uuids[i * ask.gpus : (i + 1) * ask.gpus]))) for i in range(times)]
