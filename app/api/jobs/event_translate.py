"""Events in the words of the jobs contract."""

from __future__ import annotations

from typing import Any

from app.api.answers import utc
from app.api.jobs.follow import render as render_end
from app.api.jobs.translate import STATUS
from app.api.live.event_feed import Begun, Gap
from app.api.live.feed import Message
from app.services.events import Event, Page
from app.services.views import JobView


def event_shown(event: Event) -> dict[str, Any]:
    """One change of a job."""
    return {
        "id": str(event.cursor),
        "time": utc(event.at),
        "timestamp": round(event.at.timestamp(), 6),
        "tenant_id": str(event.tenant_id),
        "job_id": str(event.job_id),
        "type": event.type,
        "contract": event.contract,
        "previous": None if event.was is None else event.was.word,
        "status": STATUS[event.state],
        "state_detail": event.state.word,
        "ready": event.ready,
        "reason": event.reason,
        "stop_cause": None if event.stop_cause is None else event.stop_cause.word,
        "attempt": event.attempt,
        "executor_id": event.node_id,
    }


def page_shown(page: Page) -> dict[str, Any]:
    """A page of the feed."""
    return {
        "events": [event_shown(event) for event in page.events],
        "next": str(page.next),
        "more": page.more,
        "gap": page.gap,
        "held_seconds": round(page.held_s, 3),
    }


def told(one: Event | Begun | Gap | JobView) -> Message:
    """One message of a stream: `begin`, `job` (an event), `gap`, or `end` with the job as it ended."""
    if isinstance(one, JobView):
        return render_end(one)
    if isinstance(one, Event):
        return Message("job", event_shown(one), str(one.cursor))
    if isinstance(one, Begun):
        return Message("begin", {"after": str(one.cursor)}, str(one.cursor))
    return Message("gap", {"message": "Some events behind this cursor are no longer kept."}, str(one.cursor))
