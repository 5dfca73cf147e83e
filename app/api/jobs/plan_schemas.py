"""Shapes of what operators see of planning in the jobs contract."""

from __future__ import annotations

import marshmallow as ma
from marshmallow import fields

from app.api.fields import Choice
from app.api.pagination import PageSchema, page_limit
from app.domain.priority import PriorityClass

_CLASSES = tuple(one.word for one in PriorityClass)


class PlanPage(PageSchema):
    """Which part of the list."""

    limit = page_limit(default=100, most=1000)


class CycleShown(ma.Schema):
    """The planner's last cycle: how long it and its steps took, how much it saw, and what it did."""

    ended_at = fields.String()
    age_seconds = fields.Float(metadata={"description": "Since it ended."})
    seconds = fields.Float()
    load_seconds = fields.Float(metadata={"description": "Of these to read the fabric,"})
    plan_seconds = fields.Float(metadata={"description": "to decide,"})
    apply_seconds = fields.Float(metadata={"description": "to place."})
    nodes = fields.Integer()
    running = fields.Integer(metadata={"description": "Allocations; a gang has one for each member."})
    waiting = fields.Integer(metadata={"description": "Waiting jobs that it looked at."})
    placed = fields.Integer(metadata={"description": "Jobs."})
    refused = fields.Integer(metadata={"description": "Placements that no longer fitted when they were made."})
    reserved = fields.Integer(metadata={"description": "Members of jobs for which room is kept."})
    preempted = fields.Integer(metadata={"description": "Jobs that it told to make room."})


class TotalsShown(ma.Schema):
    """All cycles that came to their end, since the database was made."""

    cycles = fields.Integer()
    seconds = fields.Float()
    placed = fields.Integer()
    refused = fields.Integer()
    preempted = fields.Integer()


class ReservationShown(ma.Schema):
    """What is kept on one node for a job. Amounts are those of all its members there."""

    job_id = fields.UUID()
    type = fields.String()
    tenant = fields.String()
    effective_class = Choice(*_CLASSES)
    counts_as = Choice(*_CLASSES, metadata={"description": "Claims of this class and of lower ones leave it alone."})
    job_members = fields.Integer(metadata={"description": "Of the whole job."})
    node = fields.String()
    members = fields.Integer(metadata={"description": "Those that are to run on this node."})
    cpus = fields.Float()
    memory_bytes = fields.Integer()
    gpus = fields.List(fields.String(), metadata={"description": "UUIDs, also of such as are not free yet."})
    starts_at = fields.String(
        allow_none=True,
        metadata={"description": "When the job starts at the latest; null: something there has no time limit."},
    )
    made_at = fields.String()
    expires_at = fields.String(metadata={"description": "When it ends if no further cycle keeps it."})
    why = fields.String(metadata={"description": "gang, large, starved or preempting", "example": "gang"})


class QuotaHoldShown(ma.Schema):
    """What is kept of a tenant's quota for one of its jobs. Null: the quota does not limit that."""

    job_id = fields.UUID()
    type = fields.String()
    tenant = fields.String()
    effective_class = Choice(*_CLASSES)
    job_members = fields.Integer()
    jobs = fields.Integer(allow_none=True)
    cpus = fields.Float(allow_none=True)
    memory_bytes = fields.Integer(allow_none=True)
    gpus = fields.Integer(allow_none=True)
    gpu_memory_bytes = fields.Integer(allow_none=True)
    made_at = fields.String()
    expires_at = fields.String(metadata={"description": "When it ends if no further cycle keeps it."})


class MakingRoomShown(ma.Schema):
    """A job that was told to make room, with what it still holds."""

    job_id = fields.UUID()
    type = fields.String()
    tenant = fields.String()
    nodes = fields.List(fields.String())
    cpus = fields.Float()
    memory_bytes = fields.Integer()
    gpus = fields.Integer()
    since = fields.String(allow_none=True)
    grace_seconds = fields.Float()
    reason = fields.String()
    for_job_id = fields.UUID(allow_none=True, metadata={"description": "null: nobody noted for whom."})


class PlanShown(ma.Schema):
    """What the planner did last, and one page of each list; `limit` and `offset` are of each."""

    cycle = fields.Nested(CycleShown, allow_none=True, metadata={"description": "Null before the first."})
    silent_seconds = fields.Float(allow_none=True, metadata={"description": "Since the planner last looked."})
    late = fields.Boolean(metadata={"description": "Longer than it should take: no scheduler runs, or it hangs."})
    totals = fields.Nested(TotalsShown)
    reserved_jobs = fields.Integer(metadata={"description": "Jobs for which room is kept."})
    reservations_total = fields.Integer()
    reservations = fields.List(fields.Nested(ReservationShown), metadata={"description": "In the order made."})
    quota_holds_total = fields.Integer()
    quota_holds = fields.List(fields.Nested(QuotaHoldShown), metadata={"description": "In the order made."})
    making_room_total = fields.Integer()
    making_room = fields.List(fields.Nested(MakingRoomShown), metadata={"description": "Told to end, and ending."})
