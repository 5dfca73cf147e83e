"""Changes of jobs in the gpu contract's words.

    id: 7512.91.20240115                               where to go on (Last-Event-ID), opaque
    event: state
    data: {"job_id":"job-…","tenant_id":"tenant-…","name":"train","state":"running","message":"",…}

A word comes again where the fabric's own state, in `state_detail`, is finer. A job's stream closes with one `end`.
"""

from __future__ import annotations

from typing import Any

from app.api.answers import utc
from app.api.gpu.translate import JOB, STATE, TENANT, message_of
from app.api.ids import shown_id
from app.api.live.event_feed import Begun, Gap
from app.api.live.feed import Message
from app.domain.phase import phase_of
from app.domain.states import JobState, Reason
from app.services.events import Event
from app.services.views import JobView


def told(one: Event | Begun | Gap | JobView) -> Message:
    """One message of a stream: `begin`, `state`, `gap`, or `end` with the job as it ended."""
    if isinstance(one, JobView):
        return _end(one)
    if isinstance(one, Event):
        return Message("state", _event(one), str(one.cursor))
    if isinstance(one, Begun):
        return Message("begin", {"after": str(one.cursor)}, str(one.cursor))
    return Message("gap", {"message": "Some events from here on are no longer kept"}, str(one.cursor))


def _event(event: Event) -> dict[str, Any]:
    return {
        "job_id": shown_id(JOB, event.job_id),
        "tenant_id": shown_id(TENANT, event.tenant_id),
        "name": event.type,
        "state": STATE[phase_of(event.state, event.ready, event.reason, event.stop_cause)],
        "message": _why(event),
        "node_name": event.node_id or "",
        "time": utc(event.at),
        "state_detail": event.state.word,
        "reason": event.reason,
        "stopping": event.state == JobState.STOPPING,
        "attempt": event.attempt,
    }


def _why(event: Event) -> str:
    """Why it waits or failed, as far as the event tells: the job itself has the full text."""
    if event.state == JobState.PENDING:
        return event.reason if event.reason and event.reason != Reason.NEW else ""
    if event.state != JobState.FAILED:
        return ""
    return event.reason or ("" if event.stop_cause is None else event.stop_cause.word)


def _end(job: JobView) -> Message:
    told = {
        "job_id": shown_id(JOB, job.id),
        "state": STATE[job.phase],
        "message": message_of(job, None),
        "exit_code": job.exit_code,
        "signal": job.signal,
    }
    return Message("end", told)
