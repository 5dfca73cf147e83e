"""Executors outside the fabric: claim, heartbeat and finish over the jobs contract, on the same claims and leases."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID, uuid4

from app.domain.errors import Invalid, NotFound, StateConflict
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.domain.states import JobState, Outcome
from app.services import logs
from app.services.claim import Claimer, claim_in
from app.services.endings import storable
from app.services.inspect import detail_in
from app.services.ranking import Ranking
from app.services.report import Chunk, Finished, finish_in
from app.services.views import JobDetail, JobView, view_of
from app.storage import jobs, leases, nodes
from app.storage.database import Database, Row, Tx
from config.settings import Settings

OUTPUT_CAP = 2**20
TOLD = frozenset({Outcome.COMPLETED, Outcome.FAILED, Outcome.DRAINED, Outcome.PREEMPTED, Outcome.REQUEUED})
"""What an executor's own answer can have led to, besides a cancel."""
CLAIM_TRIES, CLAIM_PAUSE_S = 4, 0.02
"""Claims in a row, when each found a tenant's quota being decided elsewhere: that takes milliseconds."""


@dataclass(frozen=True)
class ExternalClaim:
    """A job given to an external executor, running from now until its lease ends."""

    detail: JobDetail
    attempt: int
    lease_expires_at: datetime


@dataclass(frozen=True)
class Heartbeat:
    """The answer to a heartbeat: whether to stop the job, and when the lease ends now."""

    stop: bool
    grace_s: float
    lease_expires_at: datetime


def claim_external(
    db: Database, settings: Settings, executor_id: str, executor_ip: str | None, ranking: Ranking | None = None
) -> ExternalClaim | None:
    """Gives the executor the next single-node binary job without GPUs, running at once; None when there is none.

    A job that this executor held before is not given to it again, since its fence is the executor's name.
    `ranking` is what this process knows of the order of tenants.
    """
    for left in range(CLAIM_TRIES - 1, -1, -1):
        given, passed_over = _claim_once(db, settings, executor_id, executor_ip, ranking)
        if given is not None or not passed_over:
            return given
        if left:
            # Outside of any transaction: what is being decided must end, and no connection waits for it.
            time.sleep(CLAIM_PAUSE_S)
    return None


def _claim_once(
    db: Database, settings: Settings, executor_id: str, executor_ip: str | None, ranking: Ranking | None
) -> tuple[ExternalClaim | None, bool]:
    """What was claimed, and whether a tenant was passed over only because another claim decided its quota just then."""
    with db.transaction("claim") as tx:
        nodes.touch_external(tx, executor_id, executor_ip, uuid4())
        if tx.value("SELECT kind FROM node WHERE id = %(id)s", {"id": executor_id}) != "external":
            raise Invalid(f"executor_id {executor_id!r} is the name of a node of this fabric; choose another")
        lease_s = settings.external_lease_s
        claimer = Claimer(executor_id, None, ("process",), lease_s, external=True, shy=True, ranking=ranking)
        taken = claim_in(tx, claimer, 1)
        if not taken:
            return None, taken.passed_over
        one = taken[0]
        assert one.expires_at is not None
        return ExternalClaim(detail_in(tx, jobs.job_view(tx, one.job_id), 0), one.attempt, one.expires_at), False


def heartbeat_external(
    db: Database, settings: Settings, job_id: UUID, executor_id: str, attempt: int | None = None
) -> Heartbeat:
    """Extends the executor's lease. Raises NotFound when it does not hold this job, or the job is not active."""
    with db.transaction("renew") as tx:
        nodes.touch_external(tx, executor_id, None, uuid4())
        row = _held(tx, job_id, executor_id, attempt)
        if row is None or not leases.renew(tx, executor_id, [row.id], [row.token], settings.external_lease_s):
            raise NotFound("Job not found or not running", job_id=str(job_id), executor_id=executor_id)
        until = tx.value("SELECT expires_at FROM lease WHERE attempt_id = %(id)s", {"id": row.id})
        return Heartbeat(row.stop_cause is not None, row.grace_s, until)


def finish_external(
    db: Database,
    job_id: UUID,
    executor_id: str,
    completed: bool,
    exit_code: int | None,
    stdout: str,
    stderr: str,
    error_message: str | None = None,
    attempt: int | None = None,
) -> tuple[JobView, frozenset[PriorityClass]]:
    """Accepts the executor's result, with the first MiB of each stream; and the classes in which jobs are ready again.

    The same answer sent again by the holder succeeds. Raises NotFound, and StateConflict when the executor does not
    hold the job or told something else before.
    """
    with db.transaction("finish") as tx:
        # Locked before anything is looked at: the reaper, or the same answer sent twice at once, may come between.
        if jobs.lock_job(tx, job_id) is None:
            raise NotFound("Job not found", job_id=str(job_id))
        row = _held(tx, job_id, executor_id, attempt, ended=True)
        view = jobs.job_view(tx, job_id)
        status = JobState(view.state).word if view else "gone"
        if row is None:
            raise StateConflict(
                f"The job is {status} and not held by {executor_id!r}.", job_id=str(job_id), status=status
            )
        if row.outcome is not None:
            told = logs.split_output(tx, row, OUTPUT_CAP)
            same_output = (told.stdout, told.stderr) == (_cut(stdout)[0], _cut(stderr)[0])
            _repeat_or_refuse(row, completed, exit_code, storable(error_message or ""), same_output, status)
            return view_of(view), frozenset()
        chunk, size, cut = _output(row, stdout, stderr)
        end = Finished(
            attempt_id=row.id,
            token=row.token,
            ending=Ending(exit_code=exit_code, accepted_as=JobState.COMPLETED if completed else JobState.FAILED),
            message=error_message or "",
            output_bytes=size,
            truncated_bytes=cut,
            chunks=(chunk,) if chunk else (),
        )
        result = finish_in(tx, [end])
        return view_of(jobs.job_view(tx, job_id)), result.ready_again


def _held(tx: Tx, job_id: UUID, executor_id: str, attempt: int | None, ended: bool = False) -> Row | None:
    """The attempt that this executor holds (or, with `ended`, held last) of a job."""
    return tx.row(
        """SELECT a.*, j.stop_cause, s.grace_s, j.attempt_id AS current FROM attempt a JOIN job j ON j.id = a.job_id
        JOIN job_spec s ON s.job_id = j.id JOIN node n ON n.id = a.node_id AND n.kind = 'external'
        WHERE a.job_id = %(job)s AND a.node_id = %(node)s AND (%(attempt)s::int IS NULL OR a.number = %(attempt)s)
            AND (j.attempt_id = a.id OR (%(ended)s AND j.attempt_id IS NULL AND j.attempt = a.number))
        ORDER BY a.number DESC LIMIT 1""",
        {"job": job_id, "node": executor_id, "attempt": attempt, "ended": ended},
    )


def _repeat_or_refuse(
    row: Row, completed: bool, exit_code: int | None, message: str, same_output: bool, status: str
) -> None:
    same = (row.outcome == "completed") == completed and row.exit_code == exit_code
    same = same and same_output and (row.reason or "") == message
    # A cancel that won decides the end whatever the executor says; its answer is still "received".
    if row.outcome == "cancelled" or (same and row.outcome in TOLD):
        return
    raise StateConflict(f"The job is {status} already.", job_id=str(row.job_id), status=status)


def _output(row: Row, stdout: str, stderr: str) -> tuple[Chunk | None, int, int]:
    framed, kept, total = b"", 0, 0
    for stream, text in ((logs.STDOUT, stdout), (logs.STDERR, stderr)):
        cut, size = _cut(text)
        kept, total = kept + len(cut), total + size
        if cut:
            framed += logs.frame(stream, time.time(), cut)
    if not framed:
        return None, 0, total - kept
    return Chunk(row.id, row.log_day, 0, len(framed), logs.PLAIN, framed), kept, total - kept


def _cut(text: str) -> tuple[bytes, int]:
    """The first MiB of a stream, ended at a character, and how many bytes all of it has."""
    data = text.encode("utf-8", "replace")
    return (data[:OUTPUT_CAP].decode("utf-8", "ignore").encode() if len(data) > OUTPUT_CAP else data), len(data)
