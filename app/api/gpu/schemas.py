"""Shapes of the gpu contract: requests are parsed by these; answers are documented by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Flag, Number, Text, Whole, Word
from app.api.pagination import PageSchema, page_limit
from app.api.program import MAX_TOTAL_BYTES, Arguments, Environment, Image, start_bytes
from app.domain.priority import MAX_PRIORITY
from app.domain.tenant import MAX_NAME, MAX_TEXT, Tier

STATES = ("pending", "running", "completed", "failed", "preempted", "cancelled")
MAX_MB = 2**34
MAX_MINUTES = 366 * 24 * 60
MAX_SCRIPT = 2**20


class JobAsked(StrictSchema):
    """A job by its GPUs: an image, a command or a script, or an image with either."""

    tenant_id = Text(most=100, metadata={"description": "Id or name; the caller's own when absent."})
    name = Text(required=True, metadata={"example": "training-job"})
    priority = Whole(0, MAX_PRIORITY, metadata={"example": 500, "description": "The tier's own when absent."})
    gpu_count = Whole(0, 1024, load_default=0, metadata={"example": 2})
    gpu_memory_mb = Whole(0, MAX_MB, load_default=0, metadata={"example": 16000, "description": "Of each GPU, in MB."})
    cpu_cores = Number(0, 4096, above=True, metadata={"example": 8})
    memory_mb = Whole(1, MAX_MB, metadata={"example": 32000})
    script = Text(
        most=MAX_SCRIPT, one_line=False, metadata={"description": "Run by /bin/sh, unless a command is given."}
    )
    environment = Environment(load_default=dict)
    image = Image(metadata={"example": "nvidia/cuda:12.0-base"})
    command = Arguments(load_default=list, metadata={"example": ["python"]})
    args = Arguments(load_default=list, metadata={"example": ["train.py"]})
    gang_scheduling = Flag(load_default=False, metadata={"description": "The GPUs may be on several nodes."})
    max_runtime_minutes = Number(0, MAX_MINUTES, above=True, metadata={"example": 120})

    @ma.validates_schema
    def _something_to_run(self, data: Mapping[str, Any], **_: Any) -> None:
        if not (data.get("script") or data["command"] or data.get("image")):
            raise ma.ValidationError({"script": ["is required unless there is a command or an image"]})
        size = start_bytes([*data["command"], *data["args"]], data["environment"])
        if size > MAX_TOTAL_BYTES:
            message = f"has {size} bytes together with command and environment; at most {MAX_TOTAL_BYTES} are allowed"
            raise ma.ValidationError({"args": [message]})


class TenantAsked(StrictSchema):
    """A tenant with its quotas; one that is absent is unlimited."""

    name = Word(1, MAX_NAME, required=True, metadata={"example": "research-team"})
    email = Text(most=MAX_TEXT, allow_none=True)
    organization = Text(most=MAX_TEXT, allow_none=True)
    max_gpus = Whole(0, 2**40, allow_none=True, metadata={"example": 10})
    max_gpu_memory_mb = Whole(0, 2**40, allow_none=True, metadata={"example": 160000, "description": "Over all GPUs."})
    max_cpu_cores = Number(0, 2**40, allow_none=True, metadata={"example": 64})
    max_memory_mb = Whole(0, 2**40, allow_none=True, metadata={"example": 256000})
    max_concurrent_jobs = Whole(0, 2**40, allow_none=True, metadata={"example": 20})
    priority_tier = Choice(*Tier, load_default=Tier.MEDIUM.value, metadata={"example": "high"})
    allow_preemption = Flag(load_default=True)
    can_preempt_others = Flag(load_default=False)


class ListAsked(PageSchema):
    """Which jobs to list."""

    limit = page_limit(default=50, most=10_000)
    tenant_id = Text(most=100)
    state = Choice(*STATES)


class JobSubmitted(ma.Schema):
    """A job that is now durable."""

    job_id = fields.String(metadata={"example": "job-0190b3e67f4c7d0aa6a0c1a4f5b6d7e8"})
    status = fields.String(metadata={"example": "submitted"})
    message = fields.String(metadata={"example": "Job submitted successfully"})


class JobShown(ma.Schema):
    """How a job stands."""

    job_id = fields.String()
    state = fields.String(metadata={"enum": list(STATES)})
    message = fields.String(metadata={"description": "Why it waits or failed; else empty."})
    allocated_gpus = fields.List(fields.String(), metadata={"description": "UUIDs of the last attempt's GPUs."})
    node_name = fields.String(metadata={"description": "Empty before the first attempt."})
    queue_position = fields.Integer(metadata={"description": "1 is next; 0 is not waiting."})
    estimated_wait = fields.String(metadata={"example": "1m30s", "description": "By the starts of the last hour."})
    state_detail = fields.String(metadata={"description": "The fabric's own state."})
    reason = fields.String(allow_none=True)
    stopping = fields.Boolean(metadata={"description": "A cancelled job whose processes are still ending."})
    exit_code = fields.Integer(allow_none=True)
    signal = fields.Integer(allow_none=True)
    external_id = fields.String(allow_none=True, metadata={"description": "A tracked job's id at its reporter."})
    effective_priority = fields.Integer(metadata={"description": "What counts after the cap of the tenant's tier."})


class JobListed(ma.Schema):
    """A job in a list."""

    id = fields.String()
    tenant_id = fields.String()
    name = fields.String()
    state = fields.String()
    priority = fields.Integer()
    gpu_count = fields.Integer()
    submitted_at = fields.String()
    started_at = fields.String(allow_none=True)
    state_detail = fields.String()
    reason = fields.String(allow_none=True)


class JobList(ma.Schema):
    """A page of jobs, newest first."""

    jobs = fields.List(fields.Nested(JobListed))
    total = fields.Integer()


class Message(ma.Schema):
    """What was done."""

    message = fields.String(metadata={"example": "Job cancelled successfully"})


class TenantShown(ma.Schema):
    """A tenant and the GPUs that it holds now."""

    id = fields.String(metadata={"example": "tenant-0190b3e67f4c7d0aa6a0c1a4f5b6d7e8"})
    name = fields.String()
    max_gpus = fields.Integer(allow_none=True, metadata={"description": "Null is unlimited."})
    current_gpus = fields.Integer()
    priority_tier = fields.String()
    active = fields.Boolean()
    created_at = fields.String()
    email = fields.String(allow_none=True)
    organization = fields.String(allow_none=True)
    max_gpu_memory_mb = fields.Integer(allow_none=True)
    max_cpu_cores = fields.Float(allow_none=True)
    max_memory_mb = fields.Integer(allow_none=True)
    max_concurrent_jobs = fields.Integer(allow_none=True)
    allow_preemption = fields.Boolean()
    can_preempt_others = fields.Boolean()


class ClusterStatus(ma.Schema):
    """The cluster now."""

    total_gpus = fields.Integer()
    available_gpus = fields.Integer()
    total_nodes = fields.Integer()
    online_nodes = fields.Integer()
    total_jobs = fields.Integer(metadata={"description": "Pending and running."})
    pending_jobs = fields.Integer()
    running_jobs = fields.Integer()


class Health(ma.Schema):
    """Whether the fabric can take jobs."""

    status = fields.String(metadata={"example": "healthy"})


class ErrorShown(ma.Schema):
    """Every refusal."""

    error = fields.String()
    details = fields.List(fields.Dict(), metadata={"description": "Fields that cannot be accepted; absent otherwise."})
