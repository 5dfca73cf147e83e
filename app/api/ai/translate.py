"""The ai contract's words on one side, the domain's on the other; the only place that knows both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from fractions import Fraction
from typing import Any
from uuid import UUID

from flask import g

from app.api.answers import utc
from app.api.ids import parse_id, shown_id
from app.domain.errors import FabricError, Invalid, KeyReused, NotFound, QuotaExceeded
from app.domain.job import JobRequest, Submitted
from app.domain.phase import Phase
from app.domain.priority import PriorityClass, class_of_percent, from_percent, to_percent
from app.domain.quantity import parse_quantity
from app.domain.resources import MIB, Resources
from app.domain.states import JobState
from app.services.inspect import JobFilter
from app.services.views import JobDetail, JobView
from config.settings import Settings

PREFIX = "job-"
STATUS: Mapping[Phase, str] = {
    Phase.READY: "queued",
    Phase.WAITING: "pending",
    Phase.PREEMPTED: "queued",
    Phase.STARTING: "running",
    Phase.RUNNING: "running",
    Phase.CANCELLING: "cancelled",
    Phase.STOPPING: "running",
    Phase.COMPLETED: "succeeded",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "cancelled",
}
"""Each phase's word in this contract."""

CODES: Mapping[int, str] = {
    400: "VALIDATION_ERROR", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT", 413: "VALIDATION_ERROR", 415: "VALIDATION_ERROR", 429: "RATE_LIMITED", 500: "INTERNAL_ERROR",
    503: "SERVICE_UNAVAILABLE",
}  # fmt: skip
"""The document's word for each status."""

QUEUES: Mapping[PriorityClass, str] = {
    PriorityClass.FOREGROUND: "high-priority",
    PriorityClass.BACKGROUND: "default",
    PriorityClass.BEST_EFFORT: "low-priority",
}
"""Each class's name as a queue; the class's own word is understood too."""


class AiErrorForm:
    """The document's envelope; a reused key is a conflict here."""

    statuses: Mapping[type[FabricError], int] = {KeyReused: 409}

    def body(self, status: int, error: FabricError) -> Any:
        """The answer's JSON value."""
        details: list[dict[str, Any]] = []
        if isinstance(error, Invalid):
            details = [{"field": one.field, "message": one.message} for one in error.problems]
        elif isinstance(error, QuotaExceeded) and error.context.get("field"):
            details = [{"field": str(error.context["field"]), "message": error.message}]
        return {
            "error": {
                "code": CODES.get(status, "VALIDATION_ERROR"),
                "message": error.message,
                "details": details,
                "request_id": g.get("request_id", ""),
            }
        }


def parse_job_id(text: str) -> UUID:
    """The job's id. Raises NotFound for anything that this contract never showed."""
    return parse_id(PREFIX, text)


def job_request(asked: Mapping[str, Any], settings: Settings) -> JobRequest:
    """A parsed body as the domain's request."""
    retry = asked.get("retry_policy", {})
    script = asked.get("script")
    return JobRequest(
        type=asked["job_type"],
        priority_class=class_of_percent(asked["priority"]),
        priority=from_percent(asked["priority"]),
        contract="ai",
        runner="process" if "script" in asked else "container",
        members=_members(asked),
        image=asked.get("image"),
        script=script,
        command=tuple(asked["command"]),
        environment=asked["environment"],
        config=asked.get("config"),
        resources=_resources(asked["resources"], settings) if "resources" in asked else None,
        time_limit_s=asked.get("timeout_seconds"),
        max_retries=retry.get("max_retries", 0),
        backoff_multiplier=retry.get("backoff_multiplier", 2.0),
        asked={name: asked[name] for name in _KEPT if name in asked},
    )


def _members(asked: Mapping[str, Any]) -> int:
    """How many members start together; the document knows no more than the least number, so that many it is."""
    gang = asked.get("gang", {})
    return int(gang.get("min_members", 1)) if gang.get("enabled") else 1


_KEPT = ("priority", "resources", "gang", "timeout_seconds", "retry_policy")


def _resources(asked: Mapping[str, Any], settings: Settings) -> Resources:
    cpu, memory = _number(asked.get("cpu")), _number(asked.get("memory"))
    return Resources(
        cpus_milli=settings.default_cpus_milli if cpu is None else max(1, round(cpu * 1000)),
        memory_bytes=settings.default_memory_mib * MIB if memory is None else math.ceil(memory),
        gpus=asked.get("gpu", 0),
    )


def _number(value: str | float | None) -> Fraction | None:
    return None if value is None else parse_quantity(value) if isinstance(value, str) else Fraction(value)


def job_filter(asked: Mapping[str, Any]) -> JobFilter:
    """The query of a list as the service's filter."""
    word = asked.get("status")
    return JobFilter(
        phases=None if word is None else frozenset(p for p, shown in STATUS.items() if shown == word),
        type=asked.get("job_type"),
        least_percent=asked["priority_min"] or None,
    )


def created(job: Submitted, priority: int) -> dict[str, Any]:
    """The answer to a submit."""
    return {
        "id": shown_id(PREFIX, job.id),
        "job_type": job.type,
        "priority": priority,
        "status": "pending",
        "created_at": utc(job.created_at),
        "queue_position": job.queue_position,
    }


def listed(job: JobView) -> dict[str, Any]:
    """A job in a list."""
    stopping = job.state == JobState.STOPPING and job.stop_cause is not None
    return {
        "id": shown_id(PREFIX, job.id),
        "job_type": job.type,
        "priority": to_percent(job.priority),
        "status": STATUS[job.phase],
        "created_at": utc(job.created_at),
        "started_at": utc(job.started_at),
        "state_detail": job.state.word,
        "reason": job.stop_cause.word if stopping and job.stop_cause is not None else job.reason,
        "stopping": job.state == JobState.STOPPING,
    }


def detailed(detail: JobDetail, position: int, logs_url: str) -> dict[str, Any]:
    """Everything about a job; what was asked is echoed as it was asked."""
    job, spec = detail.job, detail.spec
    own = spec.asked if job.contract == "ai" else {}
    return {
        **listed(job),
        "image": spec.image,
        "config": None if spec.config is None else dict(spec.config),
        "resources": own.get("resources", _resources_shown(spec.resources)),
        "completed_at": utc(job.finished_at),
        "retry_count": max(0, job.attempt - 1),
        "worker_id": job.executor_id,
        "logs_url": logs_url,
        "gang": own.get("gang", _gang_shown(spec.members)),
        "timeout_seconds": own.get("timeout_seconds", spec.time_limit_s),
        "retry_policy": own.get("retry_policy", {"max_retries": spec.max_retries}),
        "script": spec.script,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "message": job.message or None,
        "queue_position": position,
        "external_id": job.external_id,
        "effective_priority": to_percent(spec.effective_priority),
    }


def _gang_shown(members: int) -> dict[str, Any] | None:
    """A gang of another contract in this one's words."""
    return {"enabled": True, "min_members": members} if members > 1 else None


def _resources_shown(share: Resources | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {"cpu": f"{share.cpus_milli}m", "memory": f"{share.memory_bytes // MIB}Mi", "gpu": share.gpus}


def cancelled(job_id: UUID, at: datetime) -> dict[str, Any]:
    """The answer to a cancel."""
    return {"id": shown_id(PREFIX, job_id), "status": "cancelled", "cancelled_at": utc(at)}


def class_of_queue(name: str) -> PriorityClass:
    """The class that a queue's name means. Raises NotFound."""
    for of, shown in QUEUES.items():
        if name in {shown, of.word}:
            return of
    raise NotFound(f"There is no queue {name[:100]!r}; there are {', '.join(QUEUES.values())}.")


def queued(jobs: Sequence[JobView]) -> list[dict[str, Any]]:
    """Waiting jobs of a queue."""
    return [
        {"id": shown_id(PREFIX, job.id), "priority": to_percent(job.priority), "queued_at": utc(job.created_at)}
        for job in jobs
    ]
