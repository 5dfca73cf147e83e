"""Where a job can start at this moment: one seat, or all the seats of a gang."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from scheduler.planner.ask import Ask
from scheduler.planner.host import Host, give
from scheduler.planner.hosts import Hosts
from scheduler.planner.outcome import Seat
from scheduler.planner.snapshot import Waiting

Room = list[tuple[Host, int]]
"""Hosts, and how many members each may take."""


def ends_at(job: Waiting, now: float) -> float:
    """When the job is gone at the latest if it starts now."""
    return math.inf if job.limit_s is None else now + job.limit_s + job.grace_s


@dataclass(frozen=True, slots=True)
class Offer:
    """Seats for all members, free now, and the way to them; or none, and how many members would fit."""

    way: Literal["claim", "gang", "backfill", "none"]
    seats: tuple[tuple[Host, Seat], ...] = ()
    fits: int = 0


class Seats:
    """Finds seats. A host without room for an ask is not asked again, for room only shrinks while a plan is made."""

    def __init__(self, hosts: Hosts, now: float) -> None:
        self._hosts, self._now = hosts, now
        self._walks: dict[tuple[Ask, str], deque[Host]] = {}
        self._no_hole: dict[tuple[Ask, str], float] = {}
        self._most: dict[tuple[Ask, str, int | None], tuple[int, float]] = {}

    def offer(self, job: Waiting, ask: Ask) -> Offer:
        """Seats that are free now and that nobody else is promised, or that the job leaves before they are needed."""
        if job.members > 1:
            return self._gang(job, ask)
        host = self._spare(job, ask)
        if host is not None:
            return Offer("claim", ((host, Seat(host.view.id, host.lend(ask))),), 1)
        hole = self._hole(job, ask)
        return Offer("backfill", (hole,), 1) if hole else Offer("none")

    def _spare(self, job: Waiting, ask: Ask) -> Host | None:
        """A tight host that has room for one beside all reservations; hosts to avoid come last."""
        walk = self._walks.get((ask, job.runner))
        if walk is None:
            # Tightest first, looked up once: each is used until it is full, so that it gets tighter still.
            hosts = [host for host in self._hosts.tightest_first(ask.whole_gpus) if job.runner in host.view.runners]
            walk = self._walks[ask, job.runner] = deque(hosts)
        while walk and not walk[0].spare_for(ask):
            walk.popleft()
        if not job.avoid or not walk or walk[0].view.id not in job.avoid:
            return walk[0] if walk else None
        fresh = (host for host in walk if host.view.id not in job.avoid and host.spare_for(ask))
        return next(fresh, walk[0])

    def _hole(self, job: Waiting, ask: Ask) -> tuple[Host, Seat] | None:
        """A seat in what is held for others, for a job that is gone before they need it."""
        key, end = (ask, job.runner), ends_at(job, self._now)
        if key in self._no_hole and end >= self._no_hole[key]:
            return None
        for host in self._hosts.with_reservations.values():
            if job.runner in host.view.runners and host.view.id not in job.avoid:
                times, gpus = host.hole_for(ask, end)
                if times:
                    return host, Seat(host.view.id, give(gpus, ask, 1)[0])
        if not job.avoid:
            self._no_hole[key] = end
        return None

    def _gang(self, job: Waiting, ask: Ask) -> Offer:
        """All seats, on few hosts, in one cluster if one has the room; or how many members would fit."""
        key, end = (ask, job.runner, job.max_per_node), ends_at(job, self._now)
        most, least_end = self._most.get(key, (job.members, math.inf))
        if most < job.members and end >= least_end:
            return Offer("none", fits=most)
        room = [(host, min(times, job.max_per_node or times)) for host, times in self._room(job, ask, end) if times]
        fits = sum(times for _host, times in room)
        if fits < job.members:
            self._most[key] = fits, end
            return Offer("none", fits=fits)
        fresh = [(host, times) for host, times in room if host.view.id not in job.avoid]
        enough = sum(times for _host, times in fresh) >= job.members
        chosen = pack(fresh if enough else room, job.members)
        return Offer("gang", tuple(seat for host, times in chosen for seat in self._sit(host, ask, times, end)), fits)

    def _room(self, job: Waiting, ask: Ask, end: float) -> Iterator[tuple[Host, int]]:
        reserved = self._hosts.with_reservations
        for host in self._hosts.tightest_first(ask.whole_gpus):
            if host.at not in reserved and job.runner in host.view.runners:
                yield host, host.spare_for(ask)
        for host in reserved.values():
            if job.runner in host.view.runners:
                yield host, host.hole_for(ask, end)[0]

    def _sit(self, host: Host, ask: Ask, times: int, end: float) -> list[tuple[Host, Seat]]:
        gpus = host.hole_for(ask, end)[1] if host.reserved else host.spare_gpus
        return [(host, Seat(host.view.id, uuids)) for uuids in give(gpus, ask, times)]


def pack(room: Room, members: int) -> Room:
    """So many members on few hosts, in one cluster if one has the room: wide hosts first, the last one tight."""
    clusters: dict[str, Room] = {}
    for host, times in room:
        clusters.setdefault(host.view.cluster, []).append((host, times))
    wide = [part for part in clusters.values() if sum(times for _host, times in part) >= members]
    left = sorted(min(wide, key=lambda part: sum(times for _h, times in part), default=room), key=lambda r: -r[1])
    chosen: Room = []
    while members:
        # Once one host holds all that is left, the tightest such host does.
        last = min((r for r in left if r[1] >= members), key=lambda r: r[1], default=left[0])
        left.remove(last)
        taken = min(last[1], members)
        chosen.append((last[0], taken))
        members -= taken
    return chosen
