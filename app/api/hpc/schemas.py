"""Shapes of the hpc contract: requests are parsed by these; answers are documented by them and built in translate."""

from __future__ import annotations

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import QuerySchema, StrictSchema
from app.api.fields import Choice, Number, QueryWhole, Text, Whole
from app.api.hpc.fields import ClientId, Moment, Nodes, Reported
from app.api.pagination import PageSchema, page_limit

STATES = ("pending", "running", "completed", "failed", "cancelled")
MAX_LIMIT = 10_000
MAX_MEMORY_MB = 2**40


class JobAsked(StrictSchema):
    """A job that runs elsewhere, from now on."""

    id = ClientId(required=True, metadata={"example": "job-001", "description": "Unique job identifier"})
    user = Text(required=True, metadata={"example": "alice", "description": "Username who owns the job"})
    nodes = Nodes(required=True, metadata={"example": ["node-01", "node-02"]})


class _Usage(StrictSchema):
    cpu_usage = Number(0, 100, metadata={"description": "CPU usage percentage"})
    memory_usage_mb = Whole(0, MAX_MEMORY_MB, metadata={"description": "Memory usage in megabytes"})
    gpu_usage = Reported(metadata={"description": "GPU usage percentage"})


class JobChanged(_Usage):
    """What changes; only provided fields are updated. A job may be sent back as it was shown."""

    state = Choice(*STATES)
    id = fields.Raw(allow_none=True, metadata={"description": "May be repeated, never changed."})
    user = fields.Raw(allow_none=True, metadata={"description": "May be repeated, never changed."})
    nodes = fields.Raw(allow_none=True, metadata={"description": "May be repeated, never changed."})
    start_time = Moment(allow_none=True, metadata={"description": "May be repeated, never changed."})
    end_time = fields.Raw(allow_none=True, metadata={"description": "Not read."})
    runtime_seconds = fields.Raw(allow_none=True, metadata={"description": "Not read."})
    state_detail = fields.Raw(allow_none=True, metadata={"description": "Not read."})
    reason = fields.Raw(allow_none=True, metadata={"description": "Not read."})
    fabric_id = fields.Raw(allow_none=True, metadata={"description": "Not read."})


class SampleAsked(StrictSchema):
    """What a job uses now."""

    cpu_usage = Number(0, 100, required=True, metadata={"description": "CPU usage percentage"})
    memory_usage_mb = Whole(0, MAX_MEMORY_MB, required=True, metadata={"description": "Memory usage in megabytes"})
    gpu_usage = Reported(load_default=None, metadata={"description": "GPU usage percentage"})


class ListAsked(PageSchema):
    """Which jobs to list."""

    limit = page_limit(default=100, most=MAX_LIMIT)
    state = Choice(*STATES, metadata={"description": "Filter by job state"})
    user = Text(metadata={"description": "Filter by username"})
    node = Text(metadata={"description": "Filter by node name"})


class SamplesAsked(QuerySchema):
    """Which samples to list; both ends belong to the range."""

    start_time = Moment(metadata={"description": "Filter metrics after this time (ISO 8601)"})
    end_time = Moment(metadata={"description": "Filter metrics before this time (ISO 8601)"})
    limit = QueryWhole(1, MAX_LIMIT, load_default=1000, metadata={"description": "Maximum samples to return"})


class JobShown(ma.Schema):
    """A job, tracked or of the fabric. `gpu_usage` is absent until it is known."""

    id = fields.String(required=True)
    user = fields.String(required=True)
    nodes = fields.List(fields.String(), required=True)
    state = Choice(*STATES, required=True)
    start_time = fields.String(required=True, allow_none=True, metadata={"example": "2026-01-20T10:00:00Z"})
    cpu_usage = fields.Float(required=True)
    memory_usage_mb = fields.Integer(required=True)
    gpu_usage = fields.Float()
    end_time = fields.String(required=True, allow_none=True)
    runtime_seconds = fields.Integer(required=True, metadata={"description": "Stops with the job."})
    state_detail = fields.String(required=True, metadata={"description": "The fabric's own state."})
    reason = fields.String(required=True, allow_none=True, metadata={"description": "Why it waits or is stopped."})
    fabric_id = fields.UUID(required=True, metadata={"description": "Its id in the other contracts."})


class JobsListed(ma.Schema):
    """A page of jobs, newest first."""

    jobs = fields.List(fields.Nested(JobShown), required=True)
    total = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    offset = fields.Integer(required=True)


class SampleShown(ma.Schema):
    """Usage at one time."""

    timestamp = fields.String(required=True, metadata={"example": "2026-01-20T10:00:00Z"})
    cpu_usage = fields.Float(required=True)
    memory_usage_mb = fields.Integer(required=True)
    gpu_usage = fields.Float()


class SamplesListed(ma.Schema):
    """Samples in ascending order; `total` is how many there are in the range."""

    job_id = fields.String(required=True)
    samples = fields.List(fields.Nested(SampleShown), required=True)
    total = fields.Integer(required=True)


class HealthShown(ma.Schema):
    """Whether the service can reach its database."""

    status = fields.String(required=True, metadata={"enum": ["healthy", "unhealthy"]})
    timestamp = fields.String(required=True)
    version = fields.String(required=True)


class ErrorShown(ma.Schema):
    """A refusal."""

    error = fields.String(required=True)
    message = fields.String(required=True)
