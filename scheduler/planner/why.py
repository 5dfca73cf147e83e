"""Why a job does not start in this cycle: a word for each cause, with the numbers that show it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from app.domain.policy import Room
from app.domain.tenant import charge_of
from scheduler.planner.ask import Ask
from scheduler.planner.horizon import Start
from scheduler.planner.host import Host
from scheduler.planner.hosts import Hosts
from scheduler.planner.outcome import Note
from scheduler.planner.preempt import Eviction
from scheduler.planner.snapshot import Rules, Waiting


def quota(room: Room, job: Waiting) -> Note:
    """Its tenant may hold less than the job needs; the first such limit."""
    limits = vars(room)
    for name, ask in vars(charge_of(job.shape)).items():
        if limits[name] is not None and ask and limits[name] < ask * job.members:
            return Note("quota", {"limit": name, "needs": ask * job.members, "left": limits[name]})
    return Note("quota")


def quota_kept(room: Room, job: Waiting) -> Note:
    """Its tenant's quota has too little left for it, and is kept for it."""
    return Note("quota_kept", quota(room, job).numbers)


def quota_behind(room: Room, first: Waiting, job: Waiting) -> Note:
    """What its tenant's quota has left is kept for `first`, or too little is beside that."""
    numbers = quota(room.less(first.shape, first.members), job).numbers
    name = str(numbers["limit"])
    left, kept = vars(room)[name], vars(charge_of(first.shape, first.members))[name]
    return Note("quota_behind", {**numbers, "left": left, "kept": kept, "job": str(first.job_id)})


def too_large(job: Waiting, could: int) -> Note:
    """Even without any other job there are too few places for it."""
    return Note("too_large", {"members": job.members, "empty_fabric_holds": could})


def claim(host: Host) -> Note:
    """It fits now; the node takes it by itself."""
    return Note("claim", {"node": host.view.id})


def full(job: Waiting, rules: Rules) -> Note:
    """As many jobs as may have a reservation, all before it in line, have one."""
    return Note("reservations_used", {"max_reservations": rules.max_reservations, "members": job.members})


def no_room(job: Waiting, ask: Ask, hosts: Hosts, found: int, now: float) -> Note:
    """It fits nowhere now, and nothing is held for it."""
    numbers: dict[str, int | float | str | None] = {
        "members": job.members, "members_that_fit": found, "gpus": ask.gpus, "most_spare_gpus": hosts.most_spare(),
        "waited_s": round(now - job.waiting_since, 1),
    }  # fmt: skip
    return Note("no_room", numbers)


def behind(job: Waiting, hosts: Hosts) -> Note:
    """What is held for jobs before it leaves too little, whatever ends."""
    return Note("behind", {"members": job.members, "nodes_with_reservations": len(hosts.with_reservations)})


def reserved(start: Start, found: int, now: float) -> Note:
    """Room is held for it; `starts_in_s` says when, if all that runs uses its limit; None: something has no limit."""
    wait = None if start.at == math.inf else round(start.at - now, 1)
    return Note("reserved", {**_seated(start), "members_that_fit": found, "starts_in_s": wait})


def preempting(made: Eviction, now: float) -> Note:
    """Others were told to make room for it."""
    numbers = {
        **_seated(Start(made.free_at, made.seats)),
        "victims": len(made.victims),
        "lost_gpu_s": round(sum(victim.lost_gpu_s for victim in made.victims), 1),
        "starts_in_s": round(made.free_at - now, 1),
    }
    return Note("preempting", numbers)


def _seated(start: Start) -> Mapping[str, int | float | str | None]:
    return {"members": len(start.seats), "nodes": len({seat.node_id for _host, seat in start.seats})}
