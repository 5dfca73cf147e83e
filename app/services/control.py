"""What users and operators do with a job after its submit, besides stopping it: hold, release, reprioritise, requeue.

Each locks the job's row first, so that a claim, a stop or an end at the same moment comes wholly before or after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.errors import Invalid, NotFound, Refused, StateConflict
from app.domain.hold import message_of
from app.domain.priority import PriorityClass
from app.domain.states import TERMINAL, JobState, Reason, StopCause
from app.domain.tenant import Tier, effective
from app.services.inspect import detail_in
from app.services.queue import position_in
from app.services.stop import request_stop_in
from app.services.submit import keys_for
from app.services.views import JobDetail
from app.storage import holds, jobs
from app.storage import queue as stored_queue
from app.storage.database import Row, Tx
from app.storage.keys import revive_keys, shape_at
from config.settings import Settings


@dataclass(frozen=True)
class Caller:
    """Who asks: a name for records, the tenant whose jobs are meant (None: any), and whether as an operator."""

    name: str
    tenant_id: UUID | None
    operator: bool = False


@dataclass(frozen=True)
class Changed:
    """A job as it is now, its place in the queue (0: it does not wait for its turn), and whom to tell after the commit:
    a class in which it became ready, nodes that are to stop it."""

    detail: JobDetail
    position: int = 0
    ready: PriorityClass | None = None
    wake: Sequence[str] = ()


def hold_in(tx: Tx, caller: Caller, job_id: UUID, reason: str = "") -> Changed:
    """Keeps a pending job from being started until it is released; its backoff and its age go on.

    Held already it stays as it is, but an operator takes a user's hold over. Raises NotFound, and StateConflict when
    the job is not pending.
    """
    row = _locked(tx, caller, job_id)
    if row.state != JobState.PENDING:
        raise _wrong(row, "only a job that waits can be held" + _OR_HELD_LATER[JobState(row.state) in TERMINAL])
    message = message_of(caller.name, caller.operator, reason)
    held = holds.hold_of(tx, job_id) if row.reason == Reason.HOLD else None
    if held is None:
        holds.insert(tx, [job_id], caller.name, caller.operator, reason, message)
    elif caller.operator and not held.operator:
        holds.take_over(tx, job_id, caller.name, True, reason, message)
    return _changed(tx, job_id)


_OR_HELD_LATER = {False: "; requeue it with `hold` to stop it and keep it back", True: ""}


def release_in(tx: Tx, caller: Caller, job_id: UUID) -> Changed:
    """Ends a hold: the job goes on waiting where it was in its queue. One that nobody holds stays as it is.

    Raises NotFound, StateConflict when the job has ended, and Refused when an operator holds it and another asks.
    """
    row = _locked(tx, caller, job_id)
    if JobState(row.state) in TERMINAL:
        raise _wrong(row, "nothing of it is held")
    held = holds.hold_of(tx, job_id)
    if held is not None and held.operator and not caller.operator:
        why = f": {held.reason}" if held.reason else ""
        message = f"Operator {held.held_by} holds this job{why}. Only an operator can release it."
        raise Refused(message, job_id=str(job_id), held_by=held.held_by)
    if row.state != JobState.PENDING:
        holds.forget(tx, job_id)
    elif row.reason == Reason.HOLD:
        revive_keys(tx, {row.key_id: row.queue_seq})
        holds.release(tx, job_id)
        return _changed(tx, job_id, rings=True)
    return _changed(tx, job_id)


@dataclass(frozen=True)
class Wanted:
    """A class, and a priority in its range; None is the class's usual one."""

    priority_class: PriorityClass
    priority: int | None = None


def reprioritise_in(tx: Tx, settings: Settings, caller: Caller, job_id: UUID, wanted: Wanted) -> Changed:
    """Gives a pending job another class or priority, within what its tenant's tier allows; it keeps its age.

    Raises NotFound, StateConflict when the job is not pending, and Refused as a submit does.
    """
    row = _locked(tx, caller, job_id)
    if row.state != JobState.PENDING:
        raise _wrong(row, "a priority counts only while a job waits")
    priority = wanted.priority_class.default_priority if wanted.priority is None else wanted.priority
    least, most = wanted.priority_class.range
    if not least <= priority <= most:
        told = f"{priority} is no priority of the class {wanted.priority_class.word}: that has {least} to {most}"
        raise Invalid(f"priority: {told}", field="priority")
    key = jobs.key_of(tx, row.key_id)
    shape = shape_at(key, *effective(Tier(key.tier), wanted.priority_class, priority))
    key_id = keys_for(tx, settings, row.tenant_id, [shape])[shape]
    # The key may have moved on beyond this job's age; also, an older look at it must not end it under the job.
    revive_keys(tx, {key_id: row.queue_seq})
    jobs.move_to_key(tx, job_id, key_id, int(wanted.priority_class), priority)
    return _changed(tx, job_id, rings=row.ready)


def requeue_in(tx: Tx, caller: Caller, job_id: UUID, reason: str | None = None, hold: bool = False) -> Changed:
    """Stops an active job with its grace; then it waits again where it was in its queue, and is charged nothing.

    With `hold` it is held from then on. A job that waits already, or is being stopped to wait again, stays as it is but
    for `hold`. Raises NotFound, and StateConflict when the job has ended or is being cancelled.
    """
    row = _locked(tx, caller, job_id)
    state = JobState(row.state)
    if state in TERMINAL:
        raise _wrong(row, f"an ended job is not revived; `cfab resubmit {job_id}` submits the same anew")
    if state == JobState.STOPPING and row.stop_cause == StopCause.CANCEL:
        raise _wrong(row, "it is being cancelled")
    if state == JobState.PENDING:
        return hold_in(tx, caller, job_id, reason or "") if hold else _changed(tx, job_id)
    _view, wake = request_stop_in(tx, row.tenant_id, job_id, caller.name, reason, StopCause.REQUEUE)
    if hold and holds.hold_of(tx, job_id) is None:
        message = message_of(caller.name, caller.operator, reason or "")
        holds.insert(tx, [job_id], caller.name, caller.operator, reason or "", message)
    return replace(_changed(tx, job_id), wake=tuple(wake))


def _locked(tx: Tx, caller: Caller, job_id: UUID) -> Row:
    row = jobs.lock_job(tx, job_id)
    if row is None or caller.tenant_id not in {None, row.tenant_id}:
        raise NotFound("Job not found", job_id=str(job_id))
    return row


def _wrong(row: Row, hint: str) -> StateConflict:
    state = JobState(row.state)
    told = {JobState.COMPLETED: "has completed", JobState.FAILED: "has failed", JobState.CANCELLED: "is cancelled"}
    message = f"The job {told.get(state, f'is {state.word}')}: {hint}."
    return StateConflict(message, job_id=str(row.id), status=state.word)


def _changed(tx: Tx, job_id: UUID, rings: bool = False) -> Changed:
    row = jobs.job_view(tx, job_id)
    assert row is not None
    waits = row.state == JobState.PENDING and row.ready
    at = stored_queue.place(tx, job_id) if waits else None
    position = 0 if at is None else position_in(tx, at).position
    ready = PriorityClass(row._mapping["class"]) if rings and waits else None
    return Changed(detail_in(tx, row, 0), position, ready)
