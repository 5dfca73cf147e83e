"""What is known of planning: what cycles add up to, and what operators see of the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.domain.priority import PriorityClass
from app.domain.states import StopCause
from app.storage import plans, quota_holds
from app.storage.database import Database, Row, Tx

COUNTED = ("placed", "refused", "preempted")
"""What of a cycle is added up: jobs placed, placements that no longer fitted, jobs told to make room."""
LATE_S = 30.0
MOST_TOLD = 1000


@dataclass(frozen=True)
class Cycle:
    """The last cycle: when it ended, how long it and its steps took, how much it saw, and what it did.

    `placed` counts jobs, `reserved` members for whom capacity is kept, `preempted` jobs told to make room.
    """

    ended_at: datetime
    age_s: float
    seconds: float
    load_s: float
    plan_s: float
    apply_s: float
    nodes: int
    running: int
    waiting: int
    placed: int
    refused: int
    reserved: int
    preempted: int


@dataclass(frozen=True)
class Totals:
    """All cycles that came to their end, added up since the database was made; `seconds` is the time they took."""

    cycles: int = 0
    seconds: float = 0.0
    placed: int = 0
    refused: int = 0
    preempted: int = 0


@dataclass(frozen=True)
class KeptPlace:
    """What is kept on one node for `members` of a job's `of_members`; amounts are those of all of them.

    It counts as `counts_as` against claims: a job that waited too long, or for which others make room, stands before
    those of its class.
    """

    job_id: UUID
    type: str
    tenant: str
    priority_class: PriorityClass
    counts_as: PriorityClass
    of_members: int
    node_id: str
    members: int
    cpus_milli: int
    memory_bytes: int
    gpu_uuids: Sequence[str]
    starts_at: datetime | None
    made_at: datetime
    expires_at: datetime
    why: str


@dataclass(frozen=True)
class KeptQuota:
    """What is kept of a tenant's quota for one of its jobs; None of what the quota does not limit."""

    job_id: UUID
    type: str
    tenant: str
    priority_class: PriorityClass
    members: int
    jobs: int | None
    cpus_milli: int | None
    memory_bytes: int | None
    gpus: int | None
    gpu_memory_bytes: int | None
    made_at: datetime
    expires_at: datetime


@dataclass(frozen=True)
class MakingRoom:
    """A job that was told to make room and has not ended. `for_job` is None where nobody noted for whom."""

    job_id: UUID
    type: str
    tenant: str
    nodes: Sequence[str]
    cpus_milli: int
    memory_bytes: int
    gpus: int
    grace_s: float
    since: datetime | None
    reason: str
    for_job: UUID | None


@dataclass(frozen=True)
class PlanView:
    """What the planner did, what it keeps for whom, and who makes room.

    `silent_s` is the time since it last looked, None if it never did. `late`: longer than it should ever take.
    """

    cycle: Cycle | None
    silent_s: float | None
    late: bool
    totals: Totals
    reserved_jobs: int
    kept: Sequence[KeptPlace]
    kept_in_all: int
    quotas: Sequence[KeptQuota]
    quotas_in_all: int
    making_room: Sequence[MakingRoom]
    making_room_in_all: int


def see(db: Database, plan_s: float, limit: int, offset: int) -> PlanView:
    """The last cycle, and one page of each list; `plan_s` is how often cycles are due."""
    cause = int(StopCause.PREEMPT)
    with db.transaction("read") as tx:
        noted = plans.last_cycle(tx)
        count = plans.count_reserved(tx)
        kept = plans.reserved(tx, limit, offset)
        quotas = quota_holds.page(tx, limit, offset)
        quotas_in_all = quota_holds.count(tx)
        room = plans.making_room(tx, cause, limit, offset)
        room_in_all = plans.count_making_room(tx, cause)
    detail: Mapping[str, Any] = {} if noted is None else noted.detail
    told = {attempt: UUID(for_job) for attempt, for_job in detail.get("told", ())}
    silent_s = None if noted is None else max(0.0, noted.silent_s)
    # A cycle that takes long is not late: it is told when it has ended.
    patience_s = max(LATE_S, 10 * plan_s, 3 * float(detail.get("took_s", 0.0)))
    return PlanView(
        cycle=None if noted is None or "at" not in detail else _cycle(detail, noted.now),
        silent_s=silent_s,
        late=silent_s is None or silent_s > patience_s,
        totals=totals(detail),
        reserved_jobs=count.jobs,
        kept=[_kept(row) for row in kept],
        kept_in_all=count.places,
        quotas=[_quota(row) for row in quotas],
        quotas_in_all=quotas_in_all,
        making_room=[_making_room(row, told) for row in room],
        making_room_in_all=room_in_all,
    )


def totals(detail: Mapping[str, Any]) -> Totals:
    """What cycles added up to, of what the planner noted last."""
    noted = detail.get("totals", {})
    return Totals(**{name: noted[name] for name in vars(Totals()) if name in noted})


def carry_on(tx: Tx, before: Mapping[str, Any], detail: Mapping[str, Any]) -> dict[str, Any]:
    """What the note of a cycle (`detail`) takes over from the one before: totals, and for whom others still make room.

    A cycle that did not come to its end is not counted.
    """
    sums = vars(totals(before))
    added = {name: sums[name] + int(detail.get(name, 0)) for name in COUNTED}
    took_s = round(sums["seconds"] + float(detail["took_s"]), 4)
    told = dict([*before.get("told", ()), *detail.get("told", ())])
    stopping = plans.still_stopping(tx, [UUID(attempt) for attempt in told]) if told else set()
    pairs = [[attempt, for_job] for attempt, for_job in told.items() if UUID(attempt) in stopping]
    return {"totals": {"cycles": sums["cycles"] + 1, "seconds": took_s, **added}, "told": pairs[-MOST_TOLD:]}


def _cycle(detail: Mapping[str, Any], now: float) -> Cycle:
    def count(name: str) -> int:
        return int(detail.get(name, 0))

    def seconds(name: str) -> float:
        return float(detail.get(name, 0.0))

    return Cycle(
        ended_at=datetime.fromtimestamp(detail["at"], UTC),
        age_s=max(0.0, now - detail["at"]),
        seconds=seconds("took_s"),
        load_s=seconds("load_s"),
        plan_s=seconds("plan_s"),
        apply_s=seconds("apply_s"),
        nodes=count("nodes"),
        running=count("running"),
        waiting=count("waiting"),
        placed=count("placed"),
        refused=count("refused"),
        reserved=count("reserved"),
        preempted=count("preempted"),
    )


def _kept(row: Row) -> KeptPlace:
    return KeptPlace(
        job_id=row.job_id,
        type=row.type,
        tenant=row.tenant,
        priority_class=PriorityClass(row._mapping["class"]),
        counts_as=PriorityClass(row.counts_as),
        of_members=row.of_members,
        node_id=row.node_id,
        members=row.members,
        cpus_milli=row.cpus_milli,
        memory_bytes=row.memory_bytes,
        gpu_uuids=tuple(uuid for member in row.gpu_uuids for uuid in member),
        starts_at=row.starts_at,
        made_at=row.made_at,
        expires_at=row.expires_at,
        why=row.why,
    )


def _quota(row: Row) -> KeptQuota:
    named = dict(row._mapping)
    return KeptQuota(priority_class=PriorityClass(named.pop("class")), **named)


def _making_room(row: Row, told: Mapping[str, UUID]) -> MakingRoom:
    return MakingRoom(
        job_id=row.id,
        type=row.type,
        tenant=row.tenant,
        nodes=tuple(row.nodes),
        cpus_milli=row.cpus_milli,
        memory_bytes=row.memory_bytes,
        gpus=row.gpus,
        grace_s=row.grace_s,
        since=row.since,
        reason=row.stop_reason or "",
        for_job=told.get(str(row.attempt_id)),
    )
