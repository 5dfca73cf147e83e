"""Where a job is in its life, in one sentence: what lies in the job itself, not in its tenant or in the nodes."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.domain import amounts
from app.domain.explain import Cause, Code
from app.domain.states import TERMINAL, JobState, Reason, StopCause


@dataclass(frozen=True)
class JobNow:
    """A job's own facts. `last_outcome` is how its last attempt ended, with exit code or signal."""

    state: JobState
    ready: bool = True
    reason: str | None = None
    message: str = ""
    attempt: int = 0
    node_id: str | None = None
    stop_cause: StopCause | None = None
    stop_by: str | None = None
    stop_reason: str | None = None
    started_at: datetime | None = None
    claimed_at: datetime | None = None
    finished_at: datetime | None = None
    not_before: datetime | None = None
    failures: int = 0
    max_retries: int = 0
    last_outcome: str | None = None
    exit_code: int | None = None
    signal: int | None = None


def job_cause(job: JobNow, now: datetime) -> Cause | None:
    """Why the job does not wait for a node at all; None for one that is pending and may be started."""
    if job.state in TERMINAL:
        return _ended(job)
    if job.state != JobState.PENDING:
        return _active(job, now)
    if job.ready:
        return None
    if job.not_before is not None:
        return _backoff(job, job.not_before, now)
    if job.reason == Reason.DEPENDENCY:
        return Cause(Code.DEPENDENCY, job.message or "The job waits for jobs that it depends on.")
    if job.reason == Reason.ARRAY:
        return Cause(Code.ARRAY, "The job waits for its turn in its array.")
    told = f": {job.message}" if job.message else ""
    return Cause(Code.HOLD, f"The job is held back until somebody releases it{told}.")


def _active(job: JobNow, now: datetime) -> Cause:
    numbers: dict[str, Any] = {"node": job.node_id, "attempt": job.attempt}
    if job.state == JobState.STOPPING and job.stop_cause is not None:
        by = f" by {job.stop_by}" if job.stop_by else ""
        message = f"The job is being stopped on node {job.node_id}: {job.stop_cause.word.replace('_', ' ')}{by}."
        return Cause(Code.STOPPING, message, {**numbers, "cause": job.stop_cause.word})
    since = job.started_at if job.state == JobState.RUNNING else job.claimed_at
    which = f" (attempt {job.attempt})" if job.attempt > 1 else ""
    how_long = f" since {amounts.moment(since)}, for {amounts.seconds((now - since).total_seconds())}" if since else ""
    if job.state == JobState.RUNNING:
        return Cause(Code.RUNNING, f"The job runs on node {job.node_id}{which}{how_long}.", numbers)
    message = f"Node {job.node_id} has taken the job{which} and prepares its start{how_long}."
    return Cause(Code.STARTING, message, numbers)


def _ended(job: JobNow) -> Cause:
    code = {JobState.COMPLETED: Code.COMPLETED, JobState.FAILED: Code.FAILED}.get(job.state, Code.CANCELLED)
    when = f" at {amounts.moment(job.finished_at)}" if job.finished_at else ""
    end = _end(job)
    after = f" after {amounts.counted(job.attempt, 'attempt')}" if job.attempt > 1 else ""
    told = f": {job.message}" if job.message else ""
    numbers = {"exit_code": job.exit_code, "signal": job.signal, "attempts": job.attempt, "outcome": job.last_outcome}
    if code != Code.CANCELLED:
        return Cause(code, f"The job {job.state.word}{end}{when}{after}{told}.", numbers)
    if not job.stop_by or (job.message and job.message == job.stop_reason):
        return Cause(code, f"The job was cancelled{end}{when}{after}{told}.", numbers)
    # Its message says how the last attempt ended, which is not why.
    why = f": {job.stop_reason}" if job.stop_reason else ""
    how = f" ({job.message})" if job.message else ""
    return Cause(code, f"The job was cancelled by {job.stop_by}{when}{after}{why}{how}.", numbers)


def _end(job: JobNow) -> str:
    if job.signal is not None:
        return f" by signal {job.signal}"
    return f" with exit code {job.exit_code}" if job.exit_code is not None else ""


def _backoff(job: JobNow, until: datetime, now: datetime) -> Cause:
    wait_s = (until - now).total_seconds()
    when = f"waits until {amounts.moment(until)} (in {amounts.seconds(wait_s)})"
    if wait_s <= 0:
        when = f"was to wait until {amounts.moment(until)}, and is made ready with the scheduler's next tick"
    numbers: dict[str, Any] = {
        "attempt": job.attempt, "until": amounts.moment(until), "wait_s": round(max(0.0, wait_s), 1),
        "failures": job.failures, "max_retries": job.max_retries, "outcome": job.last_outcome,
        "exit_code": job.exit_code, "signal": job.signal,
    }  # fmt: skip
    how = (job.last_outcome or "failed").replace("_", " ")
    told = f": {job.message}" if job.message else ""
    if job.reason == Reason.NODE_FAULT:
        message = (
            f"Attempt {job.attempt} could not run for a fault of its node{told}. The job {when}; it costs no retry."
        )
        return Cause(Code.NODE_FAULT, message, numbers)
    spent = f"{job.failures} of {amounts.counted(job.max_retries, 'retry').replace('retrys', 'retries')} spent"
    return Cause(Code.BACKOFF, f"Attempt {job.attempt} {how}{_end(job)}{told}. The job {when}; {spent}.", numbers)
