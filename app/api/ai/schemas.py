"""Shapes of the ai contract: requests are parsed by these; answers are documented by them."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.ai.fields import Config, Quantity
from app.api.arguments import QuerySchema, StrictSchema
from app.api.fields import Choice, Flag, Number, QueryFlag, QueryWhole, Text, Whole, Word
from app.api.pagination import PageSchema, page_limit
from app.api.program import MAX_TOTAL_BYTES, Arguments, Environment, Image, start_bytes
from app.domain.job import MAX_MEMBERS

STATUSES = ("pending", "queued", "running", "succeeded", "failed", "cancelled")
YEAR_S = 366 * 86_400
MAX_SCRIPT = 2**20


class ResourcesAsked(StrictSchema):
    """What a job holds while it runs."""

    cpu = Quantity(Fraction(1, 1000), Fraction(4096), metadata={"example": "2"})
    memory = Quantity(Fraction(1), Fraction(2**54), metadata={"example": "8Gi"})
    gpu = Whole(0, 1024, metadata={"example": 1})


class GangAsked(StrictSchema):
    """Whether the job has several members, which start together or not at all."""

    enabled = Flag(load_default=False)
    min_members = Whole(1, MAX_MEMBERS, load_default=1)


class RetryAsked(StrictSchema):
    """After how many failures to run the job again, and how the wait between them grows."""

    max_retries = Whole(0, 100, load_default=0, metadata={"example": 3})
    backoff_multiplier = Number(1, 100, load_default=2, metadata={"example": 2})


class JobAsked(StrictSchema):
    """An AI job: its type and its image, or (additive) a script in place of the image."""

    job_type = Word(required=True, metadata={"example": "inference"})
    priority = Whole(0, 100, load_default=50, metadata={"example": 80})
    image = Image(metadata={"example": "pytorch-inference:v1.0", "description": "Needed unless there is a script."})
    config = Config(metadata={"description": "Reaches the job as a JSON file, named by CFAB_CONFIG."})
    resources = fields.Nested(ResourcesAsked)
    gang = fields.Nested(GangAsked)
    timeout_seconds = Number(0, YEAR_S, above=True, metadata={"example": 3600})
    retry_policy = fields.Nested(RetryAsked)
    script = Text(most=MAX_SCRIPT, one_line=False, metadata={"description": "Run by /bin/sh instead of an image."})
    command = Arguments(load_default=list, metadata={"description": "Replaces the image's own."})
    environment = Environment(load_default=dict)

    @ma.validates_schema
    def _one_program(self, data: Mapping[str, Any], **_: Any) -> None:
        if ("image" in data) == ("script" in data):
            message = "must not be given beside script" if "image" in data else "is required"
            raise ma.ValidationError({"image": [message]})
        if "script" in data and data["command"]:
            raise ma.ValidationError({"command": ["must not be given beside script"]})
        if start_bytes(data["command"], data["environment"]) > MAX_TOTAL_BYTES:
            raise ma.ValidationError({"environment": [f"is too large; at most {MAX_TOTAL_BYTES} bytes are allowed"]})


class ListAsked(PageSchema):
    """Which jobs to list."""

    limit = page_limit(default=50, most=100)
    status = Choice(*STATUSES)
    job_type = Word()
    priority_min = QueryWhole(0, 100, load_default=0, metadata={"description": "Least priority."})


class LogsAsked(QuerySchema):
    """Which output, and how."""

    follow = QueryFlag(load_default=False)
    tail = QueryWhole(0, 2**31 - 1, load_default=100, metadata={"description": "Lines from the end."})
    timestamps = QueryFlag(load_default=True)
    member = QueryWhole(0, MAX_MEMBERS - 1, load_default=0, metadata={"description": "Of a gang: the member's rank."})


class JobCreated(ma.Schema):
    """A job that is now durable."""

    id = fields.String(metadata={"example": "job-0190b3e67f4c7d0aa6a0c1a4f5b6d7e8"})
    job_type = fields.String()
    priority = fields.Integer()
    status = fields.String()
    created_at = fields.String(metadata={"example": "2024-01-15T10:00:00Z"})
    queue_position = fields.Integer(metadata={"description": "1 is next; 0 is not waiting."})


class JobListed(ma.Schema):
    """A job in a list."""

    id = fields.String()
    job_type = fields.String()
    priority = fields.Integer()
    status = fields.String(metadata={"enum": list(STATUSES)})
    created_at = fields.String()
    started_at = fields.String(allow_none=True)
    state_detail = fields.String(metadata={"description": "The fabric's own state."})
    reason = fields.String(allow_none=True, metadata={"description": "Why it waits or is being stopped."})
    stopping = fields.Boolean(metadata={"description": "A cancelled job whose processes are still ending."})


class JobList(ma.Schema):
    """A page of jobs, newest first."""

    items = fields.List(fields.Nested(JobListed))
    total = fields.Integer()
    limit = fields.Integer()
    offset = fields.Integer()


class JobShown(JobListed):
    """Everything about a job."""

    image = fields.String(allow_none=True)
    config = fields.Dict(allow_none=True)
    resources = fields.Dict(allow_none=True)
    completed_at = fields.String(allow_none=True)
    retry_count = fields.Integer()
    worker_id = fields.String(allow_none=True)
    logs_url = fields.String()
    gang = fields.Dict(allow_none=True)
    timeout_seconds = fields.Float(allow_none=True)
    retry_policy = fields.Dict(allow_none=True)
    script = fields.String(allow_none=True)
    exit_code = fields.Integer(allow_none=True)
    signal = fields.Integer(allow_none=True)
    message = fields.String(allow_none=True)
    queue_position = fields.Integer()
    external_id = fields.String(allow_none=True, metadata={"description": "A tracked job's id at its reporter."})
    effective_priority = fields.Integer(metadata={"description": "What counts after the cap of the tenant's tier."})


class JobCancelled(ma.Schema):
    """A job that is, or will be, cancelled."""

    id = fields.String()
    status = fields.String()
    cancelled_at = fields.String()


class QueueShown(ma.Schema):
    """One queue now."""

    name = fields.String()
    depth = fields.Integer()
    processing = fields.Integer()
    max_concurrency = fields.Integer()
    oldest_job_age_seconds = fields.Integer()


class QueueList(ma.Schema):
    """All queues."""

    queues = fields.List(fields.Nested(QueueShown))
    total_pending = fields.Integer()
    total_processing = fields.Integer()


class QueuedJob(ma.Schema):
    """A job that waits in a queue."""

    id = fields.String()
    priority = fields.Integer()
    queued_at = fields.String()


class QueueStats(ma.Schema):
    """What a queue did in the last hour."""

    jobs_processed_1h = fields.Integer()
    avg_wait_time_seconds = fields.Float()
    avg_processing_time_seconds = fields.Float()


class QueueDetail(ma.Schema):
    """One queue with the caller's waiting jobs."""

    name = fields.String()
    depth = fields.Integer()
    processing = fields.Integer()
    max_concurrency = fields.Integer()
    jobs = fields.List(fields.Nested(QueuedJob))
    stats = fields.Nested(QueueStats)


class ClusterListed(ma.Schema):
    """A cluster's sums."""

    name = fields.String(metadata={"example": "gpu-cluster"})
    status = fields.String(metadata={"enum": ["healthy", "degraded", "offline"]})
    total_nodes = fields.Integer()
    available_gpus = fields.Integer()
    total_gpus = fields.Integer()
    running_jobs = fields.Integer()


class ClusterList(ma.Schema):
    """All clusters."""

    clusters = fields.List(fields.Nested(ClusterListed))


class NodeGpus(ma.Schema):
    """A node's GPUs."""

    total = fields.Integer()
    available = fields.Integer()
    type = fields.String(allow_none=True, metadata={"example": "nvidia-a100", "description": "Null without GPUs."})


class NodeShare(ma.Schema):
    """A node's CPUs or memory, as quantities."""

    total = fields.String(metadata={"example": "256Gi"})
    available = fields.String(metadata={"example": "128Gi"})


class NodeShown(ma.Schema):
    """A node with what it has and what is free."""

    name = fields.String(metadata={"example": "gpu-node-01"})
    status = fields.String(metadata={"enum": ["ready", "draining", "offline"]})
    gpus = fields.Nested(NodeGpus)
    cpu = fields.Nested(NodeShare)
    memory = fields.Nested(NodeShare)


class Capacity(ma.Schema):
    """How many jobs a cluster can run, and runs."""

    max_jobs = fields.Integer()
    current_jobs = fields.Integer()


class ClusterShown(ma.Schema):
    """A cluster node by node."""

    name = fields.String()
    status = fields.String(metadata={"enum": ["healthy", "degraded", "offline"]})
    nodes = fields.List(fields.Nested(NodeShown))
    capacity = fields.Nested(Capacity)


class JobFigures(ma.Schema):
    """Jobs of the last 24 hours."""

    total_submitted_24h = fields.Integer()
    total_completed_24h = fields.Integer()
    total_failed_24h = fields.Integer()
    success_rate = fields.Float(metadata={"description": "completed / (completed + failed); 0 when none ended."})


class LatencyFigures(ma.Schema):
    """How long jobs of the last hour waited and ran; 0 when nothing was measured."""

    dispatch_p50_ms = fields.Integer()
    dispatch_p99_ms = fields.Integer()
    execution_p50_seconds = fields.Float()
    execution_p99_seconds = fields.Float()


class ThroughputFigures(ma.Schema):
    """Ended jobs per second in the last hour."""

    jobs_per_second = fields.Float()
    peak_jobs_per_second = fields.Float()


class FiguresShown(ma.Schema):
    """Figures of the whole."""

    jobs = fields.Nested(JobFigures)
    latency = fields.Nested(LatencyFigures)
    throughput = fields.Nested(ThroughputFigures)


class LiveShown(ma.Schema):
    """This process serves."""

    status = fields.String(metadata={"enum": ["ok"]})


def _check(**metadata: str) -> fields.String:
    return fields.String(metadata={"enum": ["ok", "error"], **metadata})


class ReadyChecks(ma.Schema):
    """What the service needs, one by one."""

    database = _check()
    redis = _check()
    kubernetes = _check(description="The fabric's own scheduler and registry of nodes.")


class ReadyShown(ma.Schema):
    """Whether the service is ready to accept traffic."""

    status = fields.String(metadata={"enum": ["ok", "degraded"]})
    checks = fields.Nested(ReadyChecks)


class ErrorDetail(ma.Schema):
    """A field that cannot be accepted."""

    field = fields.String(metadata={"example": "priority"})
    message = fields.String(metadata={"example": "must be a whole number from 0 to 100"})


class ErrorBody(ma.Schema):
    """What was refused and why."""

    code = fields.String(metadata={"example": "VALIDATION_ERROR"})
    message = fields.String(metadata={"example": "Invalid job configuration"})
    details = fields.List(fields.Nested(ErrorDetail))
    request_id = fields.String(metadata={"example": "req-xyz789"})


class ErrorShown(ma.Schema):
    """Every refusal."""

    error = fields.Nested(ErrorBody)
