"""Stop and cancel: a flag in the row is the truth; a message to the node only makes it quick."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.domain.errors import FabricError, NotFound, StateConflict
from app.domain.states import TERMINAL, JobState, StopCause
from app.services.views import JobView, view_of
from app.storage import gangs, jobs
from app.storage.database import Database, Tx


def cancel_pending(db: Database, tenant_id: UUID, job_id: UUID, by: str = "user", reason: str | None = None) -> JobView:
    """Cancels a job that is pending. Raises NotFound, and StateConflict when it is not pending."""
    with db.transaction("stop") as tx:
        _own(tx, tenant_id, job_id)
        if not jobs.cancel_pending(tx, [job_id], by, reason):
            row = jobs.job_view(tx, job_id)
            word = JobState(row.state).word if row else "gone"
            raise StateConflict(f"The job is {word}, not pending.", job_id=str(job_id), status=word)
        return view_of(jobs.job_view(tx, job_id))


def cancel_many(db: Database, tenant_id: UUID, ids: Sequence[UUID], by: str = "user") -> dict[UUID, FabricError | None]:
    """Cancels all of `ids` that are pending, in one transaction; for each: None, or why not."""
    with db.transaction("stop") as tx:
        return cancel_many_in(tx, tenant_id, ids, by)


def cancel_many_in(tx: Tx, tenant_id: UUID, ids: Sequence[UUID], by: str = "user") -> dict[UUID, FabricError | None]:
    """`cancel_many` in a transaction of the caller's."""
    results: dict[UUID, FabricError | None] = {}
    own = {job_id: jobs.job_view(tx, job_id) for job_id in ids}
    mine = [job_id for job_id, row in own.items() if row is not None and row.tenant_id == tenant_id]
    cancelled = jobs.cancel_pending(tx, mine, by, None)
    for job_id, row in own.items():
        if row is None or job_id not in mine:
            results[job_id] = NotFound("Job not found", job_id=str(job_id))
        elif job_id in cancelled:
            results[job_id] = None
        else:
            now = jobs.job_view(tx, job_id)
            word = JobState(now.state).word if now else "gone"
            results[job_id] = StateConflict(f"The job is {word}, not pending.", job_id=str(job_id), status=word)
    return results


def request_stop(
    db: Database,
    tenant_id: UUID,
    job_id: UUID,
    by: str,
    reason: str | None = None,
    cause: StopCause = StopCause.CANCEL,
    attempt_id: UUID | None = None,
) -> tuple[JobView, list[str]]:
    """Stops a job: pending becomes cancelled, active becomes stopping; asking again changes nothing.

    Given `attempt_id` (of a gang: its leader's), only that attempt of it is stopped. Returns the job as it is now and
    the nodes to wake. Raises NotFound, and StateConflict when it has ended, or the attempt has.
    """
    with db.transaction("stop") as tx:
        return request_stop_in(tx, tenant_id, job_id, by, reason, cause, attempt_id)


def request_stop_in(
    tx: Tx,
    tenant_id: UUID,
    job_id: UUID,
    by: str,
    reason: str | None = None,
    cause: StopCause = StopCause.CANCEL,
    attempt_id: UUID | None = None,
) -> tuple[JobView, list[str]]:
    """`request_stop` in a transaction of the caller's; the nodes are to be woken after its commit."""
    row = jobs.lock_job(tx, job_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Job not found", job_id=str(job_id))
    state = JobState(row.state)
    if state in TERMINAL:
        raise StateConflict(f"The job is {state.word} already.", job_id=str(job_id), status=state.word)
    if attempt_id is not None and row.attempt_id != attempt_id:
        raise StateConflict("That attempt of the job is over.", job_id=str(job_id), attempt_id=str(attempt_id))
    if state == JobState.PENDING:
        if cause == StopCause.CANCEL:
            jobs.cancel_pending(tx, [job_id], by, reason)
        return view_of(jobs.job_view(tx, job_id)), []
    jobs.mark_stopping(tx, job_id, int(cause), by, reason)
    return view_of(jobs.job_view(tx, job_id)), gangs.nodes_of(tx, [row.attempt_id]) or [row.node_id]


def _own(tx: Tx, tenant_id: UUID, job_id: UUID) -> None:
    row = jobs.job_view(tx, job_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Job not found", job_id=str(job_id))
