"""Shapes of the event feed in the jobs contract."""

from __future__ import annotations

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import QuerySchema
from app.api.fields import Choice, QueryWhole, Text, Word
from app.api.jobs.schemas import STATUSES

MOST_EVENTS = 1000
_AFTER = "A cursor from an earlier answer (`next`, or an event's `id`); 0: all that is kept; now: only what comes."


class HistoryAsked(QuerySchema):
    """Which events of one job."""

    after = Text(most=100, load_default="0", metadata={"description": _AFTER})
    limit = QueryWhole(1, MOST_EVENTS, load_default=100, metadata={"description": "Most events to return."})


class EventsAsked(HistoryAsked):
    """Which events: of the caller's tenant unless another is named."""

    tenant = Text(metadata={"description": "Operators: a tenant's name or id, or * for all."})
    job_id = Text(most=100, metadata={"description": "Only events of this job."})
    type = Word(metadata={"description": "Only events of jobs of this type."})


class EventsFollowed(QuerySchema):
    """Which events to follow. `Last-Event-ID` goes before `after`."""

    after = Text(most=100, load_default="now", metadata={"description": _AFTER})
    tenant = Text(metadata={"description": "Operators: a tenant's name or id, or * for all."})
    job_id = Text(most=100, metadata={"description": "Only events of this job."})
    type = Word(metadata={"description": "Only events of jobs of this type."})


class HistoryFollowed(QuerySchema):
    """From where to follow one job. `Last-Event-ID` goes before `after`."""

    after = Text(most=100, load_default="0", metadata={"description": _AFTER})


class EventShown(ma.Schema):
    """One change of a job's state, or of the reason why it waits."""

    id = fields.String(metadata={"description": "The cursor behind this event."})
    time = fields.String(metadata={"example": "2024-01-01T12:00:00Z"})
    timestamp = fields.Float(metadata={"description": "The same in unix seconds, with microseconds."})
    tenant_id = fields.UUID()
    job_id = fields.UUID()
    type = fields.String(allow_none=True, metadata={"description": "null when the job is no longer kept."})
    contract = fields.String(allow_none=True)
    previous = fields.String(allow_none=True, metadata={"description": "The state_detail before; null at first."})
    status = Choice(*STATUSES)
    state_detail = fields.String()
    ready = fields.Boolean(metadata={"description": "Whether a pending job may be claimed."})
    reason = fields.String(allow_none=True, metadata={"description": "Why it waits."})
    stop_cause = fields.String(allow_none=True, metadata={"description": "Why it is being, or was, stopped."})
    attempt = fields.Integer()
    executor_id = fields.String(allow_none=True)


class EventsShown(ma.Schema):
    """A page of the feed."""

    events = fields.List(fields.Nested(EventShown))
    next = fields.String(metadata={"description": "Go on with this as `after`."})
    more = fields.Boolean(metadata={"description": "There are more events already."})
    gap = fields.Boolean(metadata={"description": "Events after the given cursor are no longer kept."})
    held_seconds = fields.Float(
        metadata={"description": "For so long an event has been waiting for an older open transaction to end."}
    )
