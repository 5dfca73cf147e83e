"""Shapes of the compute contract: requests are parsed by these; answers are documented by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Number, QueryWhole, Text
from app.api.pagination import PageSchema, page_limit
from app.api.program import MAX_TOTAL_BYTES, Arguments, Environment, Image, start_bytes

STATES = ("queued", "running", "stopping", "succeeded", "failed", "stopped")
MAX_CPUS = 4096
MAX_MEM_GIB = 2**20


class JobAsked(StrictSchema):
    """A container to run; only the image is needed."""

    image = Image(required=True, metadata={"example": "repo/transform:24"})
    cmd = Arguments(load_default=list, metadata={"example": ["/app/run"], "description": "Replaces the image's own."})
    cpu = Number(0, MAX_CPUS, above=True, metadata={"example": 2, "description": "CPUs; fractions are allowed."})
    mem_gib = Number(0, MAX_MEM_GIB, above=True, metadata={"example": 4, "description": "Memory in GiB."})
    env = Environment(load_default=dict, metadata={"example": {"TZ": "Asia/Kolkata"}})

    @ma.validates_schema
    def _small_enough(self, data: Mapping[str, Any], **_: Any) -> None:
        size = start_bytes(data["cmd"], data["env"])
        if size > MAX_TOTAL_BYTES:
            message = f"has {size} bytes together with env; at most {MAX_TOTAL_BYTES} are allowed"
            raise ma.ValidationError({"cmd": [message]})


class StopAsked(StrictSchema):
    """Why a job is stopped."""

    optional_body = True

    reason = Text(
        least=0, most=1000, one_line=False, allow_none=True, load_default=None, metadata={"example": "operator_request"}
    )


class ListAsked(PageSchema):
    """Which jobs to list."""

    limit = page_limit(default=100, most=1000)
    state = Choice(*STATES)


class LogsAsked(ma.Schema):
    """How much of the output."""

    class Meta:
        """Unknown parameters pass unread."""

        unknown = ma.EXCLUDE

    tail = QueryWhole(0, 2**31 - 1, metadata={"description": "Only the last lines."})


class JobState(ma.Schema):
    """A job's id and state."""

    job_id = fields.String(metadata={"example": "job_0190b3e67f4c7d0aa6a0c1a4f5b6d7e8"})
    state = fields.String(metadata={"enum": list(STATES)})


class JobSummary(JobState):
    """A job in a list."""

    created_at = fields.String(metadata={"example": "2024-01-01T12:00:00Z"})
    started_at = fields.String(allow_none=True)
    finished_at = fields.String(allow_none=True)
    exit_code = fields.Integer(allow_none=True)
    signal = fields.Integer(allow_none=True)
    state_detail = fields.String(metadata={"description": "The fabric's own state."})
    reason = fields.String(allow_none=True, metadata={"description": "Why it waits or is being stopped."})
    message = fields.String(metadata={"description": "The same in words; empty when there is nothing to say."})


class JobShown(JobSummary):
    """A job with all that was asked."""

    image = fields.String(allow_none=True, metadata={"description": "Null for a job that is not a container."})
    cmd = fields.List(fields.String())
    cpu = fields.Float(allow_none=True)
    mem_gib = fields.Float(allow_none=True)
    env = fields.Dict(keys=fields.String(), values=fields.String())
    attempt = fields.Integer()
    node = fields.String(allow_none=True)
    stop_reason = fields.String(allow_none=True)
    external_id = fields.String(allow_none=True, metadata={"description": "A tracked job's id at its reporter."})


class JobList(ma.Schema):
    """A page of jobs, newest first."""

    jobs = fields.List(fields.Nested(JobSummary))
    total = fields.Integer()
    limit = fields.Integer()
    offset = fields.Integer()


class LogLines(ma.Schema):
    """The last lines of a job's output."""

    lines = fields.List(fields.String())
    truncated = fields.Boolean(metadata={"description": "Whether the output has more lines than these."})


class ErrorShown(ma.Schema):
    """Every refusal."""

    error = fields.String(metadata={"example": "invalid_request"})
    message = fields.String()
    details = fields.List(fields.Dict(), metadata={"description": "Fields that cannot be accepted; absent otherwise."})
