"""The hpc contract's words on one side, the domain's on the other; the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID

from app.api.answers import utc
from app.domain.errors import FabricError, FieldProblem, Invalid, NotFound
from app.domain.states import JobState
from app.services.observed import JobFilter, ObservedJob, Usage, UsageSample

WORD: Mapping[JobState, str] = {
    JobState.PENDING: "pending",
    JobState.STARTING: "running",
    JobState.RUNNING: "running",
    JobState.STOPPING: "running",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
"""Each state's word in this contract."""

TRACKED_STATE: Mapping[str, JobState] = {
    "pending": JobState.PENDING,
    "running": JobState.RUNNING,
    "completed": JobState.COMPLETED,
    "failed": JobState.FAILED,
    "cancelled": JobState.CANCELLED,
}
"""The state in which a word puts a tracked job."""

_USAGE = {"cpu_usage": "cpu_percent", "memory_usage_mb": "memory_mib", "gpu_usage": "gpu_percent"}
_SAME = ("id", "user", "nodes", "start_time")
_CODES = {
    400: "invalid_request", 401: "unauthorized", 403: "forbidden", 404: "not_found", 405: "method_not_allowed",
    409: "conflict", 413: "invalid_request", 415: "invalid_request", 429: "rate_limited", 503: "unavailable",
}  # fmt: skip
_SECOND = timedelta(seconds=1)


class HpcErrorForm:
    """`{"error": code, "message": text}`; validation_error is about fields, invalid_request about all else."""

    statuses: Mapping[type[FabricError], int] = MappingProxyType({})

    def body(self, status: int, error: FabricError) -> Any:
        """The answer's JSON value."""
        about_fields = isinstance(error, Invalid) and any(one.field != "body" for one in error.problems)
        code = "validation_error" if about_fields else _CODES.get(status)
        return {
            "error": code or ("internal_error" if status >= 500 else "invalid_request"),
            "message": error.message,
        }


def job_key(text: str) -> UUID | str:
    """What a path's id names: a UUID in its usual form a job by its id in the fabric, else what a reporter calls it.

    Raises NotFound for what no job can be called.
    """
    try:
        job_id = UUID(text)
    except ValueError:
        job_id = None
    if job_id is not None and str(job_id) == text.lower():
        return job_id
    if not text.isprintable():
        raise NotFound(f"There is no job {ascii(text)[:100]}.")
    return text


def job_filter(asked: Mapping[str, Any]) -> JobFilter:
    """The query of a list as the service's filter."""
    word = asked.get("state")
    states = None if word is None else frozenset(state for state, shown in WORD.items() if shown == word)
    return JobFilter(states, asked.get("user"), asked.get("node"))


def changed_state(asked: Mapping[str, Any]) -> JobState | None:
    """The state that a change asks for."""
    return TRACKED_STATE[asked["state"]] if "state" in asked else None


def changed_usage(asked: Mapping[str, Any]) -> dict[str, float]:
    """The usage that a change asks for, in the service's words."""
    return {inside: asked[name] for name, inside in _USAGE.items() if asked.get(name) is not None}


def repeated(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a change that nobody can change."""
    same = {name: asked[name] for name in _SAME if name in asked}
    if same.get("start_time") is not None:
        same["start_time"] = same["start_time"].replace(microsecond=0)
    return same


def refuse_own_measures(asked: Mapping[str, Any]) -> None:
    """Raises Invalid for a change of a job of the fabric beyond cancelling it: its state and usage are its own."""
    problems = [
        FieldProblem(name, "cannot be set: the fabric runs this job and measures it itself")
        for name in _USAGE
        if asked.get(name) is not None
    ]
    if asked.get("state") not in {None, "cancelled"}:
        problems.append(FieldProblem("state", "can only become cancelled: the fabric runs this job"))
    if problems:
        raise Invalid(problems=problems)


def usage_asked(asked: Mapping[str, Any]) -> Usage:
    """The usage of a recorded sample."""
    return Usage(asked["cpu_usage"], asked["memory_usage_mb"], asked["gpu_usage"])


def time_range(asked: Mapping[str, Any]) -> tuple[datetime | None, datetime | None]:
    """From when on and before when: both ends belong to the range, by the whole second in which samples are shown."""
    start, end = asked.get("start_time"), asked.get("end_time")
    if start is not None and start.microsecond:
        start = _next_second(start)
    return start, None if end is None else _next_second(end)


def _next_second(moment: datetime) -> datetime:
    try:
        return moment.replace(microsecond=0) + _SECOND
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def job_shown(job: ObservedJob) -> dict[str, Any]:
    """A job of either kind."""
    fabric = job.fabric
    reason = None
    if fabric is not None:
        stopping = job.state == JobState.STOPPING and fabric.stop_cause is not None
        reason = fabric.stop_cause.word if stopping and fabric.stop_cause is not None else fabric.reason
    return {
        "id": job.shown_id,
        "user": job.user,
        "nodes": list(job.nodes),
        "state": WORD[job.state],
        "start_time": utc(job.start_time),
        **_usage_shown(job.usage),
        "end_time": utc(job.end_time),
        "runtime_seconds": int(job.runtime_s),
        "state_detail": job.state.word,
        "reason": reason,
        "fabric_id": str(job.id),
    }


def jobs_listed(jobs: Sequence[ObservedJob], total: int, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A page of jobs."""
    shown = [job_shown(job) for job in jobs]
    return {"jobs": shown, "total": total, "limit": asked["limit"], "offset": asked["offset"]}


def sample_shown(sample: UsageSample) -> dict[str, Any]:
    """One sample."""
    return {"timestamp": utc(sample.at), **_usage_shown(sample.usage)}


def _usage_shown(usage: Usage) -> dict[str, Any]:
    # The document writes no usage as 0, not as 0.0.
    shown = {"cpu_usage": usage.cpu_percent or 0, "memory_usage_mb": usage.memory_mib}
    return shown if usage.gpu_percent is None else {**shown, "gpu_usage": usage.gpu_percent}
