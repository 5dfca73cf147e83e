"""The compute contract's words on one side, the domain's on the other; the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from app.api.answers import utc
from app.api.ids import parse_id, shown_id
from app.domain.errors import FabricError, Invalid, KeyReused
from app.domain.job import JobRequest
from app.domain.phase import phases_of
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, MIB, Resources
from app.domain.states import JobState
from app.services.inspect import JobFilter
from app.services.views import JobView, SpecView
from config.settings import Settings

PREFIX = "job_"
STATE: Mapping[JobState, str] = {
    JobState.PENDING: "queued",
    JobState.STARTING: "running",
    JobState.RUNNING: "running",
    JobState.STOPPING: "stopping",
    JobState.COMPLETED: "succeeded",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "stopped",
}
"""Each state's word in this contract."""

CODES: Mapping[int, str] = {
    400: "invalid_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "invalid_request",
    409: "version_conflict", 413: "invalid_request", 415: "invalid_request", 429: "rate_limited",
    500: "internal_error", 503: "dependency_down",
}  # fmt: skip
"""The document's word for each status."""


class ComputeErrorForm:
    """`{"error": code}` with an additive message, and the fields' problems; a reused key is a conflict here."""

    statuses: Mapping[type[FabricError], int] = {KeyReused: 409}

    def body(self, status: int, error: FabricError) -> Any:
        """The answer's JSON value."""
        shown: dict[str, Any] = {"error": CODES.get(status, "invalid_request"), "message": error.message}
        if isinstance(error, Invalid) and error.problems:
            shown["details"] = [{"field": one.field, "message": one.message} for one in error.problems]
        return shown


def parse_job_id(text: str) -> UUID:
    """The job's id. Raises NotFound for anything that this contract never showed."""
    return parse_id(PREFIX, text)


def job_request(asked: Mapping[str, Any], settings: Settings) -> JobRequest:
    """A parsed body as the domain's request; a size that is not asked is the server's small default."""
    cpu, mem_gib = asked.get("cpu"), asked.get("mem_gib")
    sized = cpu is not None or mem_gib is not None
    share = Resources(
        cpus_milli=settings.default_cpus_milli if cpu is None else max(1, round(cpu * 1000)),
        memory_bytes=settings.default_memory_mib * MIB if mem_gib is None else max(1, round(mem_gib * GIB)),
    )
    return JobRequest(
        type="container",
        priority_class=PriorityClass.BACKGROUND,
        contract="compute",
        runner="container",
        image=asked["image"],
        command=tuple(asked["cmd"]),
        environment=asked["env"],
        resources=share if sized else None,
        asked={name: asked[name] for name in ("cpu", "mem_gib") if name in asked},
    )


def job_filter(asked: Mapping[str, Any]) -> JobFilter:
    """The query of a list as the service's filter."""
    word = asked.get("state")
    return JobFilter(phases=None if word is None else phases_of(s for s, shown in STATE.items() if shown == word))


def state_of(job: JobView) -> dict[str, Any]:
    """Id and state: all that the document's answers hold."""
    return {"job_id": shown_id(PREFIX, job.id), "state": STATE[job.state]}


def summary(job: JobView) -> dict[str, Any]:
    """A job in a list."""
    stopping = job.state == JobState.STOPPING and job.stop_cause is not None
    return {
        **state_of(job),
        "created_at": utc(job.created_at),
        "started_at": utc(job.started_at),
        "finished_at": utc(job.finished_at),
        "exit_code": job.exit_code,
        "signal": job.signal,
        "state_detail": job.state.word,
        "reason": job.stop_cause.word if stopping and job.stop_cause is not None else job.reason,
        "message": job.message,
    }


def detailed(job: JobView, spec: SpecView) -> dict[str, Any]:
    """A job with all that was asked, in this contract's units whatever contract it came by."""
    own = spec.asked if job.contract == "compute" else {}
    share = spec.resources
    return {
        **summary(job),
        "image": spec.image,
        "cmd": [*spec.command, *spec.arguments],
        "cpu": own.get("cpu", None if share is None else share.cpus_milli / 1000),
        "mem_gib": own.get("mem_gib", None if share is None else share.memory_bytes / GIB),
        "env": dict(spec.environment),
        "attempt": job.attempt,
        "node": job.executor_id,
        "stop_reason": job.stop_reason,
        "external_id": job.external_id,
    }
