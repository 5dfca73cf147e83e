"""What a plan changes besides placements: reservations, jobs told to make room, notes, what tenants used before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.policy import cost, decayed
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.domain.states import StopCause
from app.domain.tenant import Usage
from app.storage import planning, quota_holds
from app.storage.database import Database, Row

NOTHING = 0.001
"""A share below this is as good as none."""
STALE_NOTE_S = 5.0


@dataclass(frozen=True)
class Wanted:
    """Capacity to keep for one member of a job; `awaited` are the attempts there whose end frees it in time.

    `starts_at` is in seconds since 1970; None when nobody knows.
    """

    job_id: UUID
    member: int
    node_id: str
    priority_class: PriorityClass
    slots: int
    cpus_milli: int
    memory_bytes: int
    gpu_uuids: tuple[str, ...]
    starts_at: float | None
    awaited: tuple[UUID, ...]
    why: str


@dataclass(frozen=True)
class WantedQuota:
    """What to keep of a tenant's quota for one of its jobs: all that the job needs."""

    tenant_id: UUID
    job_id: UUID
    needs: Usage


@dataclass(frozen=True)
class Victim:
    """A running job to be stopped for another: its attempt (of a gang its leader's), for whom, and what it is told."""

    attempt_id: UUID
    for_job: UUID
    why: str


@dataclass(frozen=True)
class Told:
    """Why the planner placed a job nowhere: a word, a sentence, the numbers behind it."""

    job_id: UUID
    reason: str
    message: str
    numbers: Mapping[str, int | float | str | None]


@dataclass(frozen=True)
class Kept:
    """What became of a set of reservations: rows that changed, jobs that make room, and their nodes, to be woken."""

    changed: int
    preempted: frozenset[UUID]
    nodes: frozenset[str]


def keep(
    db: Database,
    wanted: Sequence[Wanted],
    victims: Sequence[Victim],
    lasts_s: float,
    starting: Sequence[UUID] = (),
    quotas: Sequence[WantedQuota] = (),
) -> Kept:
    """Makes `wanted` all that is reserved and `quotas` all that is kept of quotas, and tells `victims` to stop, in one
    transaction.

    So what a victim gives back is its preemptor's before anybody can claim it. A job that does not wait any more gets
    neither. What is reserved or kept of a quota ends after `lasts_s` if nobody keeps it again. Jobs that are `starting`
    by the same plan keep what was reserved for them until they have started, so that nobody claims it in the moment
    between.
    """
    rows = [
        {
            **{name: value for name, value in vars(one).items() if name not in {"priority_class", "awaited"}},
            "class": int(one.priority_class),
            "gpu_uuids": list(one.gpu_uuids),
            "awaited": [str(attempt) for attempt in one.awaited],
        }
        for one in wanted
    ]
    with db.transaction("reserve") as tx:
        changed = planning.replace_reservations(tx, rows, lasts_s, starting)
        quota_holds.replace_holds(tx, [_quota_row(one) for one in quotas], lasts_s)
        told = planning.preempt(tx, [vars(victim) for victim in victims], int(StopCause.PREEMPT)) if victims else ()
    return Kept(changed, frozenset(row.job_id for row in told), frozenset(row.node_id for row in told))


def _quota_row(one: WantedQuota) -> dict[str, object]:
    return {"tenant_id": one.tenant_id, "job_id": one.job_id, **vars(one.needs)}


def note(db: Database, notes: Sequence[Told]) -> None:
    """Makes `notes` what explanations tell of the planner; jobs that do not wait are left out."""
    with db.transaction("notes") as tx:
        planning.replace_notes(tx, [vars(one) for one in notes], STALE_NOTE_S)


def age_shares(db: Database, tenants: Sequence[Row], half_life_s: float) -> int:
    """Brings what tenants used before up to now; how many were written. A half-life of 0 forgets all at once.

    Each is brought up to date now and then only: a hundredth of the half-life, at most a minute, changes little.
    """
    every_s = min(60.0, half_life_s / 100)
    averages: dict[UUID, float] = {}
    forget: list[UUID] = []
    for row in tenants:
        live = live_cost(row)
        if row.age_s is None:
            # It begins at nothing: only what is used from now on counts.
            if live > NOTHING and half_life_s > 0:
                averages[row.id] = 0.0
        elif half_life_s <= 0 or (row.age_s >= every_s and live <= NOTHING and row.average <= NOTHING):
            forget.append(row.id)
        elif row.age_s >= every_s:
            averages[row.id] = decayed(row.average, live, row.age_s, half_life_s)
    if averages or forget:
        with db.transaction("shares") as tx:
            planning.write_shares(tx, averages, forget)
    return len(averages) + len(forget)


def live_cost(row: Row) -> float:
    """What a tenant's jobs cost now, of its row with `used_jobs` …; 0 for none."""
    if not row.used_jobs:
        return 0.0
    return cost(Resources(int(row.used_cpus), int(row.used_memory), int(row.used_gpus)))
