"""Reading: one job, lists, counts, executors, health. No statement here grows with the backlog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.domain.errors import NotFound
from app.domain.hold import Hold
from app.domain.phase import Phase
from app.domain.priority import PriorityClass
from app.domain.states import JobState, Reason
from app.services import tracked
from app.services.attempt_views import attempts_of
from app.services.counts import fold_when_many
from app.services.explain import quota_wait, shape_of
from app.services.logs import split_output
from app.services.parents import parents_in
from app.services.unrunnable import never_wait
from app.services.views import (
    ExecutorView,
    Gauges,
    JobDetail,
    JobView,
    Stats,
    spec_view,
    view_of,
)
from app.storage import holds, jobs, nodes, plans, upkeep
from app.storage.database import Database, Row, Tx

SEEN_WITHIN_S = 180.0


@dataclass(frozen=True)
class JobFilter:
    """Which jobs a list holds; None is any. `least_percent` is the least priority on the scale from 0 to 100."""

    phases: frozenset[Phase] | None = None
    type: str | None = None
    priority_class: PriorityClass | None = None
    least_percent: int | None = None


def get_job(db: Database, tenant_id: UUID, job_id: UUID) -> JobView:
    """One job. Raises NotFound, also for another tenant's."""
    with db.transaction("read") as tx:
        return view_of(_own(tx, tenant_id, job_id))


def owner_of(db: Database, job_id: UUID) -> UUID:
    """The tenant of a job, for callers who may act for any. Raises NotFound."""
    with db.transaction("read") as tx:
        row = jobs.job_view(tx, job_id)
        tenant_id: UUID | None = tracked.owner_of(tx, job_id) if row is None else row.tenant_id
    if tenant_id is None:
        raise NotFound("Job not found", job_id=str(job_id))
    return tenant_id


def job_detail(db: Database, tenant_id: UUID, job_id: UUID, output_cap: int = 2**20) -> JobDetail:
    """One job with its spec, attempts and the first `output_cap` bytes of each stream of its last attempt (member 0's).

    A tracked job, which the fabric does not run, is shown too. Raises NotFound, also for another tenant's.
    """
    with db.transaction("read") as tx:
        try:
            row = _own(tx, tenant_id, job_id)
        except NotFound:
            told = tracked.detail(tx, tenant_id, job_id)
            if told is None:
                raise
            return told
        return detail_in(tx, row, output_cap)


def detail_in(tx: Tx, row: Row, output_cap: int = 2**20) -> JobDetail:
    """`job_detail` of a row inside the caller's transaction."""
    detail = _detail(tx, row, output_cap)
    return replace(detail, job=never_wait(tx, detail.job))


def _detail(tx: Tx, row: Row, output_cap: int) -> JobDetail:
    spec = jobs.job_spec(tx, row.id)
    key = tx.row("SELECT k.* FROM scheduling_key k JOIN job j ON j.key_id = k.id WHERE j.id = %(id)s", {"id": row.id})
    assert key is not None, "a job's key is there as long as the job"
    attempts = jobs.job_attempts(tx, row.id)
    last = next((one for one in reversed(attempts) if one.member == 0), None)
    out = split_output(tx, last, output_cap) if last is not None and output_cap else None
    return JobDetail(
        job=quota_wait(tx, view_of(row), shape_of(key), key.members),
        spec=spec_view(spec, key),
        attempts=attempts_of(attempts),
        depends_on=parents_in(tx, row.id),
        hold=_hold(tx, row) if row.reason == Reason.HOLD else None,
        **(vars(out) if out else {}),
    )


def _hold(tx: Tx, row: Row) -> Hold | None:
    held = holds.hold_of(tx, row.id)
    return None if held is None else Hold(held.held_by, held.operator, held.reason, held.since)


def list_jobs(db: Database, tenant_id: UUID, wanted: JobFilter, limit: int, offset: int) -> tuple[list[JobView], int]:
    """Newest first, with the exact number of all that match."""
    filters: Mapping[str, Any] = vars(wanted)
    with db.transaction("read") as tx:
        rows = jobs.list_jobs(tx, tenant_id, filters, limit, offset)
        total, unfolded = jobs.count_jobs(tx, tenant_id, filters), jobs.unfolded(tx)
    fold_when_many(db, unfolded)
    return [view_of(row) for row in rows], total


def list_details(
    db: Database, tenant_id: UUID, wanted: JobFilter, limit: int, offset: int
) -> tuple[list[JobDetail], int]:
    """As `list_jobs`, each with what was asked; without attempts and output."""
    filters: Mapping[str, Any] = vars(wanted)
    with db.transaction("read") as tx:
        rows = jobs.list_jobs(tx, tenant_id, filters, limit, offset)
        specs = {spec.job_id: spec for spec in jobs.specs_with_keys(tx, [row.id for row in rows])}
        total = jobs.count_jobs(tx, tenant_id, filters)
        waiting = jobs.unfolded(tx)
    fold_when_many(db, waiting)
    return [JobDetail(view_of(row), spec_view(specs[row.id], specs[row.id]), ()) for row in rows], total


def phase_counts(db: Database, tenant_id: UUID | None) -> dict[Phase, int]:
    """Exact numbers of jobs by phase, zero-filled: of one tenant, or of all."""
    with db.transaction("read") as tx:
        counted = {Phase(phase): int(number) for phase, number in jobs.phase_counts(tx, tenant_id)}
    return dict.fromkeys(Phase, 0) | counted


def scheduler_is_alive(db: Database, within_s: float = 30.0) -> bool:
    """Whether a scheduler, or an agent in its place, has looked for lost leases lately."""
    with db.transaction("read") as tx:
        age_s = upkeep.since_run(tx, "reap")
    return age_s is not None and age_s <= within_s


def stats(db: Database, tenant_id: UUID | None) -> Stats:
    """Exact counts, zero-filled."""
    with db.transaction("read") as tx:
        rows, unfolded = jobs.counts(tx, tenant_id), jobs.unfolded(tx)
        live = nodes.list_nodes(tx, ["agent", "external"], SEEN_WITHIN_S)
    fold_when_many(db, unfolded)
    by_state = dict.fromkeys(JobState, 0)
    pending = dict.fromkeys(PriorityClass, 0)
    for cls, state, n in rows:
        by_state[JobState(state)] += n
        if state == JobState.PENDING:
            pending[PriorityClass(cls)] += n
    return Stats(by_state, pending, sum(row.state != "offline" for row in live))


def executors(db: Database) -> list[ExecutorView]:
    """Executors that gave a sign of life lately or still hold a job."""
    with db.transaction("read") as tx:
        rows = nodes.list_nodes(tx, ["agent", "external"], SEEN_WITHIN_S)
    return [
        ExecutorView(
            executor_id=row.id,
            kind=row.kind,
            state=row.state,
            current_job_id=row.job_id,
            job_type=row.type,
            last_heartbeat=row.last_seen_at,
            jobs_completed=row.completed,
            slots=row.slots,
            gpus=row.gpus,
        )
        for row in rows
    ]


def health(db: Database) -> None:
    """Returns when PostgreSQL answers; raises Unavailable when it does not."""
    with db.transaction("read") as tx:
        upkeep.ping(tx)


def gauges(db: Database) -> Gauges:
    """Exact numbers for monitoring: jobs by state and class, executors by state, beat tasks' last runs."""
    with db.transaction("read") as tx:
        rows, unfolded = jobs.counts(tx, None), jobs.unfolded(tx)
        seen = nodes.list_nodes(tx, ["agent", "external"], SEEN_WITHIN_S)
        runs, reserved = upkeep.task_runs(tx), plans.count_reserved(tx).jobs
    fold_when_many(db, unfolded)
    numbers = {(state.word, cls.word): 0 for state in JobState for cls in PriorityClass}
    for cls, state, n in rows:
        numbers[(JobState(state).word, PriorityClass(cls).word)] += n
    by_state = {"ready": 0, "draining": 0, "offline": 0}
    for row in seen:
        by_state[row.state] += 1
    ages, details = {run.name: run.age_s for run in runs}, {run.name: run.detail for run in runs}
    return Gauges(numbers, by_state, ages, details, reserved)


def _own(tx: Tx, tenant_id: UUID, job_id: UUID) -> Row:
    row = jobs.job_view(tx, job_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Job not found", job_id=str(job_id))
    return row
