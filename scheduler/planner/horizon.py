"""When and where a job that fits nowhere now could start at the earliest, if all that runs uses its limit."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
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


def earliest(job: Waiting, ask: Ask, hosts: Hosts, preferred: Collection[str]) -> Start | None:
    """The earliest start beside all reservations made so far; None if what is not reserved is too little for ever.

    Of the hosts that are ready by then it takes those in `preferred`, where the job has gathered room before, then
    those that are ready first; hosts to avoid come last.
    """
    most = job.max_per_node or job.members
    rises: list[tuple[float, int, Host]] = []
    for host in hosts.all:
        if job.runner not in host.view.runners:
            continue
        before = 0
        for time, times in host.steps(ask):
            times = min(times, most)
            if times > before:
                rises.append((time, times - before, host))
                before = times
    rises.sort(key=itemgetter(0))
    ready: dict[Host, tuple[float, int]] = {}
    found, at = 0, math.inf
    for time, more, host in rises:
        if found >= job.members and time > at:
            break
        found, at = found + more, time if found < job.members else at
        ready[host] = time, ready.get(host, (0.0, 0))[1] + more
    if found < job.members:
        return None

    def rank(entry: tuple[Host, tuple[float, int]]) -> tuple[bool, bool, float, int]:
        host, (time, times) = entry
        return host.view.id in job.avoid, host.view.id not in preferred, time, -times

    seats: list[tuple[Host, Seat]] = []
    for host, (_time, times) in sorted(ready.items(), key=rank):
        seats += _seats(host, ask, min(times, job.members - len(seats)))
        if len(seats) == job.members:
            break
    return Start(at, tuple(seats))


def _seats(host: Host, ask: Ask, times: int) -> list[tuple[Host, Seat]]:
    uuids = [uuid for _time, uuid in host.coming(ask)] if ask.gpus else []
    return [(host, Seat(host.view.id, tuple(uuids[i * ask.gpus : (i + 1) * ask.gpus]))) for i in range(times)]
