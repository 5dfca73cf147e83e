"""Capacity that is kept for a waiting job, and what that leaves of a node for others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.domain.priority import PriorityClass
from app.domain.resources import Free


@dataclass(frozen=True)
class Awaited:
    """An allocation whose end frees what is reserved: what it holds on the node until then."""

    attempt_id: UUID
    cpus_milli: int
    memory_bytes: int


@dataclass(frozen=True)
class Held:
    """What is reserved on a node for one member of a job, from now on or (`in_s`) by then at the latest.

    It counts against jobs of its class and below, never against a higher class. `awaited` hold a part of it still.
    """

    job_id: UUID
    priority_class: PriorityClass
    slots: int
    cpus_milli: int
    memory_bytes: int
    gpu_uuids: frozenset[str] = frozenset()
    in_s: float | None = None
    awaited: tuple[Awaited, ...] = ()

    def is_due_with(self, other: Held) -> bool:
        """Whether it has begun when `other` begins; one that nobody knows the time of is due always."""
        return self.in_s is None or other.in_s is None or self.in_s <= other.in_s


def beside(free: Free, reserved: Sequence[Held]) -> Free:
    """What of `free` others may take so that every reservation finds what it needs at its time.

    What an awaited allocation gives back is reserved already, so that it adds nothing here when it ends.
    """
    if not reserved:
        return free
    slots, cpus, memory = free.slots, free.cpus_milli, free.memory_bytes
    for one in reserved:
        due = [other for other in reserved if other.is_due_with(one)]
        slots = min(slots, free.slots + len(one.awaited) - sum(d.slots for d in due))
        cpus = min(cpus, free.cpus_milli + sum(a.cpus_milli for a in one.awaited) - sum(d.cpus_milli for d in due))
        memory = min(
            memory, free.memory_bytes + sum(a.memory_bytes for a in one.awaited) - sum(d.memory_bytes for d in due)
        )
    closed = frozenset[str]().union(*(one.gpu_uuids for one in reserved))
    gpus = tuple(gpu for gpu in free.gpus if gpu.uuid not in closed)
    return replace(free, slots=slots, cpus_milli=cpus, memory_bytes=memory, gpus=gpus)


def against(
    reserved: Iterable[Held], priority_class: PriorityClass, job_id: UUID | None = None, ends_in_s: float | None = None
) -> list[Held]:
    """Those of `reserved` that a job of this class must leave alone.

    Not its own, and none that begins only when the job is gone for sure (`ends_in_s`; None: nobody knows).
    """
    return [
        one
        for one in reserved
        if one.priority_class <= priority_class
        and one.job_id != job_id
        and not (one.in_s is not None and ends_in_s is not None and ends_in_s <= one.in_s)
    ]


def held_of(records: Sequence[Mapping[str, Any]] | None) -> list[Held]:
    """Reservations as the database tells them."""
    return [
        Held(
            job_id=UUID(one["job_id"]),
            priority_class=PriorityClass(one["class"]),
            slots=one["slots"],
            cpus_milli=one["cpus_milli"],
            memory_bytes=one["memory_bytes"],
            gpu_uuids=frozenset(one["gpu_uuids"]),
            in_s=one["in_s"],
            awaited=tuple(Awaited(UUID(a), cpus, memory) for a, cpus, memory in one["awaited"] or ()),
        )
        for one in records or ()
    ]
