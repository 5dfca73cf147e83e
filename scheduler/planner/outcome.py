"""What the planner decides: who starts where, what is held for whom, who must make room; and why the others wait."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from app.domain.tenant import Usage
from scheduler.planner.snapshot import Reserved


class Seat(NamedTuple):
    """The place of one member: a node, and the GPUs it gets there."""

    node_id: str
    gpu_uuids: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """A job that starts now, all members together; member i sits on `members[i]`."""

    job_id: UUID
    members: tuple[Seat, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Preemption:
    """A running job that must make room, with all members: `victim_attempt` is its attempt, of a gang the leader's."""

    victim_job: UUID
    victim_attempt: UUID
    for_job: UUID
    lost_gpu_s: float
    why: str


@dataclass(frozen=True, slots=True)
class QuotaHold:
    """What is kept of a tenant's quota for one of its jobs until that starts: all that the job needs of it."""

    tenant_id: UUID
    job_id: UUID
    needs: Usage


@dataclass(frozen=True, slots=True)
class Note:
    """Why a job does not start in this cycle: one word, and the numbers behind it. docs/scheduler.md lists them."""

    reason: str
    numbers: Mapping[str, int | float | str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """One cycle's decisions, each in the order of the jobs they serve.

    `reservations` is all that is wanted from now on: what was held and is not in it is to be deleted. They are applied
    before `placements`, which may use what an older reservation held for a job that now stands further back. So is
    `quota_holds`, of which a job that is placed by this plan may have one.
    Every waiting job of the snapshot is placed or has a note.
    """

    placements: tuple[Placement, ...] = ()
    reservations: tuple[Reserved, ...] = ()
    preemptions: tuple[Preemption, ...] = ()
    notes: Mapping[UUID, Note] = field(default_factory=dict)
    quota_holds: tuple[QuotaHold, ...] = ()
