"""Shapes of the jobs contract: requests are parsed by these; answers are documented by them and built in translate."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, QueryFlag, QueryWhole, Text, Whole, Word
from app.api.jobs.array_schemas import ArraySpread, ParentShown
from app.api.pagination import PageSchema, page_limit
from app.domain.errors import Invalid
from app.domain.job import MAX_MEMBERS
from app.domain.priority import PriorityClass

STATUSES = ("pending", "running", "completed", "failed", "cancelled")
PRIORITIES = tuple(c.word for c in PriorityClass)
MAX_BULK = 1000


class BulkCancelAsked(StrictSchema):
    """Jobs to cancel."""

    job_ids = fields.List(fields.String(), required=True)

    @ma.pre_load
    def _strings(self, data: Any, **_: Any) -> Any:
        if isinstance(data, dict) and "job_ids" in data:
            ids = counted(data["job_ids"], "job_ids")
            if not all(isinstance(one, str) for one in ids):
                raise ma.ValidationError({"job_ids": ["must be an array of job ids, which are strings"]})
        return data


def counted(data: Any, what: str) -> list[Any]:
    """`data` as an array that one bulk request may have. Raises Invalid for anything else."""
    if not isinstance(data, list):
        raise Invalid(f"{what}: must be a JSON array", field=what)
    if not 1 <= len(data) <= MAX_BULK:
        raise Invalid(f"{what}: must have 1 to {MAX_BULK} elements, not {len(data)}", field=what)
    return data


class StopAsked(StrictSchema):
    """Why a job is stopped."""

    optional_body = True

    reason = Text(least=0, most=1000, one_line=False, allow_none=True, load_default=None)


class ClaimAsked(StrictSchema):
    """An executor that has room for a job."""

    executor_id = Text(required=True, metadata={"example": "worker-1-abc123"})
    executor_ip = Text(allow_none=True, load_default=None, metadata={"example": "192.168.1.100"})


class HeartbeatAsked(StrictSchema):
    """A sign of life of the executor that runs the job."""

    executor_id = Text(required=True, metadata={"example": "worker-1-abc123"})
    attempt = Whole(1, 2**31 - 1, allow_none=True, load_default=None)


class _Result(StrictSchema):
    lenient = True

    executor_id = Text(required=True, metadata={"example": "worker-1-abc123"})
    stdout = Text(least=0, most=2**26, one_line=False, allow_none=True, load_default="")
    stderr = Text(least=0, most=2**26, one_line=False, allow_none=True, load_default="")
    exit_code = Whole(-(2**31), 2**31 - 1, allow_none=True, load_default=None)
    attempt = Whole(1, 2**31 - 1, allow_none=True, load_default=None)


class CompleteAsked(_Result):
    """An executor's result of a job that ran to its end."""


class FailAsked(_Result):
    """An executor's account of a job that failed."""

    error_message = Text(least=0, most=2**26, one_line=False, allow_none=True, load_default=None)


class ListAsked(PageSchema):
    """Which jobs to list."""

    limit = page_limit(default=100, most=1000)
    status = Choice(*STATUSES)
    type = Word()
    priority = Choice(*PRIORITIES)


class LogsAsked(ma.Schema):
    """Which output, and how."""

    class Meta:
        """Unknown parameters pass unread."""

        unknown = ma.EXCLUDE

    follow = QueryFlag(
        load_default=False, metadata={"description": "Stay connected: an event stream until the job ends."}
    )
    tail = QueryWhole(0, 2**31 - 1, metadata={"description": "Only the last lines."})
    stream = Choice("stdout", "stderr", metadata={"description": "Only one of the two streams."})
    attempt = QueryWhole(1, 2**31 - 1, metadata={"description": "An earlier attempt; the default is the last."})
    member = QueryWhole(0, MAX_MEMBERS - 1, load_default=0, metadata={"description": "Of a gang: the member's rank."})
    timestamps = QueryFlag(load_default=False, metadata={"description": "Each line begins with its time."})
    raw = QueryFlag(
        load_default=False,
        metadata={"description": "The very bytes, also those that drive terminals; in events as `base64`."},
    )


class JobSubmitted(ma.Schema):
    """A job that is now durable."""

    id = fields.UUID()
    type = fields.String()
    status = fields.String()
    created_at = fields.String(metadata={"example": "2024-01-01T12:00:00Z"})
    state_detail = fields.String(
        metadata={"description": "The fabric's own state: starting and stopping are told apart."}
    )
    reason = fields.String(allow_none=True, metadata={"description": "Why it waits or is being stopped."})
    array = fields.Nested(
        ArraySpread, allow_none=True, metadata={"description": "Of an array, whose id is told; null for one job."}
    )


class BulkSubmitted(ma.Schema):
    """One of the jobs of a bulk submit, in the order of the request."""

    id = fields.UUID()
    status = fields.String()
    state_detail = fields.String()
    reason = fields.String(allow_none=True)


class HoldShown(ma.Schema):
    """Who keeps a job from being started. What an operator holds only an operator releases."""

    by = fields.String()
    operator = fields.Boolean()
    reason = fields.String()
    since = fields.String()


class JobListed(ma.Schema):
    """A job in a list."""

    id = fields.UUID()
    type = fields.String()
    status = Choice(*STATUSES)
    priority = fields.String()
    executor_id = fields.String(allow_none=True)
    created_at = fields.String()
    started_at = fields.String(allow_none=True)
    attempt_started_at = fields.String(allow_none=True, metadata={"description": "When its last attempt began."})
    completed_at = fields.String(allow_none=True)
    exit_code = fields.Integer(allow_none=True)
    state_detail = fields.String()
    reason = fields.String(allow_none=True)
    message = fields.String(allow_none=True)
    external_id = fields.String(allow_none=True, metadata={"description": "A tracked job's id at its reporter."})
    array_id = fields.UUID(allow_none=True, metadata={"description": "The array it belongs to."})
    array_index = fields.Integer(allow_none=True)


class _Tried(ma.Schema):
    executor_id = fields.String()
    executor_ip = fields.String(allow_none=True)
    started_at = fields.String(allow_none=True)
    ended_at = fields.String(allow_none=True)
    status = fields.String(metadata={"enum": ["running", "completed", "failed", "cancelled"]})
    outcome = fields.String(allow_none=True)
    exit_code = fields.Integer(allow_none=True)
    signal = fields.Integer(allow_none=True)
    oom = fields.Boolean()
    limit_hit = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)
    stopped_by = fields.String(allow_none=True)
    gpu_uuids = fields.List(fields.String())
    peak_memory_bytes = fields.Integer(allow_none=True)
    cpu_seconds = fields.Float(allow_none=True)
    peak_cpu_cores = fields.Float(allow_none=True)
    peak_gpu_memory_bytes = fields.Integer(allow_none=True)
    output_bytes = fields.Integer()
    truncated_bytes = fields.Integer()
    log_gap = fields.Boolean()
    image_digest = fields.String(
        allow_none=True, metadata={"description": "What its image's name stood for: the registry's sha256 digest."}
    )


class MemberShown(_Tried):
    """One member of a gang in one try of its job."""

    member = fields.Integer(metadata={"description": "Its rank, from 0."})


class AttemptShown(_Tried):
    """One try of a job; that of a gang sums up its members."""

    attempt = fields.Integer()
    members = fields.List(fields.Nested(MemberShown), allow_none=True, metadata={"description": "null: no gang."})


class JobShown(ma.Schema):
    """Everything about a job; stdout and stderr hold the first 1,048,576 bytes of the last attempt."""

    id = fields.UUID()
    type = fields.String()
    binary_url = fields.String(allow_none=True)
    binary_sha256 = fields.String(allow_none=True)
    arguments = fields.List(fields.String())
    env_variables = fields.Dict(keys=fields.String(), values=fields.String())
    priority = fields.String()
    status = Choice(*STATUSES)
    executor_id = fields.String(allow_none=True)
    stdout = fields.String()
    stderr = fields.String()
    exit_code = fields.Integer(allow_none=True)
    created_at = fields.String()
    started_at = fields.String(allow_none=True)
    attempt_started_at = fields.String(allow_none=True, metadata={"description": "When its last attempt began."})
    completed_at = fields.String(allow_none=True)
    attempts = fields.List(fields.Nested(AttemptShown))
    effective_priority = fields.Integer(metadata={"description": "What counts in the queue, capped by the tier."})
    effective_class = Choice(*PRIORITIES, metadata={"description": "The class that counts, capped by the tier."})
    queue_position = fields.Integer(metadata={"description": "1 is next in its class, 0 is not waiting."})
    state_detail = fields.String()
    reason = fields.String(allow_none=True)
    message = fields.String(allow_none=True)
    external_id = fields.String(allow_none=True, metadata={"description": "A tracked job's id at its reporter."})
    array_id = fields.UUID(allow_none=True, metadata={"description": "The array it belongs to."})
    array_index = fields.Integer(allow_none=True)
    signal = fields.Integer(allow_none=True)
    attempt = fields.Integer()
    stdout_truncated = fields.Boolean()
    stderr_truncated = fields.Boolean()
    script = fields.String(allow_none=True)
    image = fields.String(
        allow_none=True, metadata={"description": "As it was asked; `attempts` tell the `image_digest` that ran."}
    )
    command = fields.List(fields.String(), metadata={"description": "In place of the image's entry point."})
    resources = fields.Dict(allow_none=True)
    preemptible = fields.Boolean(allow_none=True, metadata={"description": "null: as its tenant's jobs."})
    timeout_seconds = fields.Float(allow_none=True)
    grace_seconds = fields.Float()
    gang = fields.Dict(allow_none=True, metadata={"description": "How many members it has, if more than one."})
    max_retries = fields.Integer()
    stop_reason = fields.String(allow_none=True)
    stopped_by = fields.String(allow_none=True)
    hold = fields.Nested(HoldShown, allow_none=True, metadata={"description": "Null unless it is held."})
    depends_on = fields.List(fields.Nested(ParentShown))


class JobClaimed(JobShown):
    """A job given to an executor, which must send a heartbeat before the lease ends."""

    lease_expires_at = fields.String()


class JobCancelled(ma.Schema):
    """A job that is cancelled."""

    id = fields.UUID()
    status = fields.String()


class JobStopped(JobCancelled):
    """A job that is cancelled or is being stopped."""

    state_detail = fields.String()
    reason = fields.String(allow_none=True)


class JobFinished(JobStopped):
    """A job whose result was accepted."""


class HeartbeatTaken(ma.Schema):
    """What the executor should know."""

    stop = fields.Boolean(metadata={"description": "End the job: SIGTERM, and SIGKILL after the grace."})
    grace_seconds = fields.Float()
    lease_expires_at = fields.String()


class BulkCancelError(ma.Schema):
    """A job that could not be cancelled."""

    job_id = fields.String()
    error = fields.String()


class BulkCancelled(ma.Schema):
    """What became of a bulk cancel."""

    cancelled = fields.Integer()
    failed = fields.Integer()
    errors = fields.List(fields.Nested(BulkCancelError))


class StatsShown(ma.Schema):
    """Counts over all jobs."""

    jobs_by_status = fields.Dict(keys=fields.String(), values=fields.Integer())
    pending_by_priority = fields.Dict(keys=fields.String(), values=fields.Integer())
    active_executors = fields.Integer()


class ExecutorShown(ma.Schema):
    """An executor that gave a sign of life lately."""

    executor_id = fields.String()
    current_job_id = fields.UUID(allow_none=True)
    job_type = fields.String(allow_none=True)
    last_heartbeat = fields.String()
    jobs_completed = fields.Integer()
    state = fields.String()
    kind = fields.String()


class LogLines(ma.Schema):
    """Output as lines."""

    lines = fields.List(fields.String())
    truncated = fields.Boolean()
    attempt = fields.Integer()


class HealthShown(ma.Schema):
    """Status words only."""

    status = fields.String(metadata={"enum": ["healthy", "unhealthy"]})
    database = fields.String(metadata={"enum": ["connected", "disconnected"]})


class ErrorShown(ma.Schema):
    """A refusal."""

    error = fields.String()
    context = fields.Dict(keys=fields.String())
