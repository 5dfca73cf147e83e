"""The jobs contract's words on one side, the domain's on the other; the only place that knows both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.api.answers import utc
from app.api.jobs.array_translate import after, parents_shown
from app.api.jobs.schemas import PRIORITIES, STATUSES
from app.domain.errors import FabricError, FieldProblem, Invalid, NotFound, StateConflict
from app.domain.hold import Hold
from app.domain.job import JobRequest, Submitted
from app.domain.phase import phases_of
from app.domain.priority import PriorityClass
from app.domain.resources import MIB, Resources
from app.domain.states import JobState
from app.services.inspect import JobFilter
from app.services.views import AttemptView, ExecutorView, JobDetail, JobView, Stats
from config.settings import Settings

STATUS: Mapping[JobState, str] = {
    JobState.PENDING: "pending",
    JobState.STARTING: "running",
    JobState.RUNNING: "running",
    JobState.STOPPING: "running",
    JobState.COMPLETED: "completed",
    JobState.FAILED: "failed",
    JobState.CANCELLED: "cancelled",
}
"""Each state's word in this contract."""

OUTPUT_CAP = 2**20
"""Bytes of each stream that a job shows."""

_STATUS_OF_WORD = {state.word: word for state, word in STATUS.items()}
_KEPT = ("resources", "preemptible", "timeout_seconds", "grace_seconds", "backoff_seconds")


class JobsErrorForm:
    """`{"error": text, "context": {…}}`; a wrong state is 400 here."""

    statuses: Mapping[type[FabricError], int] = {StateConflict: 400}

    def body(self, status: int, error: FabricError) -> Any:
        """The answer's JSON value."""
        context = {name: _plain(value) for name, value in error.context.items() if value is not None}
        if isinstance(error, StateConflict) and context.get("status") in _STATUS_OF_WORD:
            context["state_detail"] = context["status"]
            context["status"] = _STATUS_OF_WORD[context["status"]]
        if isinstance(error, Invalid) and error.problems:
            context |= {"field": error.problems[0].field, "errors": [_problem(one) for one in error.problems]}
        return {"error": error.message, "context": context}


def _problem(one: FieldProblem) -> dict[str, Any]:
    place = {} if one.index is None else {"index": one.index}
    return {**place, "field": one.field, "message": one.message}


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | str | list | dict) else str(value)


def parse_job_id(text: str) -> UUID:
    """The job's id. Raises NotFound for anything that is not a UUID in its usual form: no job has such a name."""
    try:
        job_id = UUID(text)
    except ValueError:
        job_id = None
    if job_id is None or str(job_id) != text.lower():
        raise NotFound("Job not found", job_id=text[:100])
    return job_id


def job_request(asked: Mapping[str, Any], settings: Settings) -> JobRequest:
    """A parsed body as the domain's request."""
    return JobRequest(
        type=asked["type"],
        priority_class=PriorityClass[asked["priority"].upper()],
        runner="container" if "image" in asked else "process",
        binary_url=asked.get("binary_url"),
        binary_sha256=asked.get("binary_sha256"),
        script=asked.get("script"),
        image=asked.get("image"),
        command=tuple(asked["command"]),
        arguments=tuple(asked["arguments"]),
        hold=asked["hold"],
        environment=asked["env_variables"],
        resources=_resources(asked["resources"], settings) if "resources" in asked else None,
        time_limit_s=asked.get("timeout_seconds"),
        grace_s=asked.get("grace_seconds"),
        preemptible=asked.get("preemptible"),
        max_retries=asked["max_retries"],
        backoff_s=asked["backoff_seconds"],
        members=asked["gang"]["members"] if "gang" in asked else 1,
        asked={name: asked[name] for name in _KEPT if name in asked},
        after=after(asked["depends_on"]),
    )


def _resources(asked: Mapping[str, Any], settings: Settings) -> Resources:
    cpus, shared = asked.get("cpus"), asked.get("gpu_shared", False)
    return Resources(
        cpus_milli=settings.default_cpus_milli if cpus is None else max(1, round(cpus * 1000)),
        memory_bytes=asked.get("memory_mib", settings.default_memory_mib) * MIB,
        gpus=asked.get("gpus", 1 if shared else 0),
        gpu_memory_bytes=asked.get("gpu_memory_mib", 0) * MIB,
        gpu_model=asked.get("gpu_model", ""),
        gpu_shared=shared,
    )


def job_filter(asked: Mapping[str, Any]) -> JobFilter:
    """The query of a list as the service's filter."""
    word, priority = asked.get("status"), asked.get("priority")
    return JobFilter(
        phases=None if word is None else phases_of(state for state, shown in STATUS.items() if shown == word),
        type=asked.get("type"),
        priority_class=None if priority is None else PriorityClass[priority.upper()],
    )


def submitted(job: Submitted) -> dict[str, Any]:
    """The answer to a submit."""
    return {
        "id": str(job.id),
        "type": job.type,
        "status": "pending",
        "created_at": utc(job.created_at),
        "state_detail": "pending",
        "reason": str(job.reason),
        "array": None,
    }


def bulk_submitted(jobs: Sequence[Submitted]) -> list[dict[str, Any]]:
    """The answer to a bulk submit."""
    return [
        {"id": str(job.id), "status": "pending", "state_detail": "pending", "reason": str(job.reason)} for job in jobs
    ]


def state_of(job: JobView) -> dict[str, Any]:
    """Status, and the fields every job object carries beside it."""
    stopping = job.state == JobState.STOPPING and job.stop_cause is not None
    return {
        "status": STATUS[job.state],
        "state_detail": job.state.word,
        "reason": job.stop_cause.word if stopping and job.stop_cause is not None else job.reason,
    }


def listed(job: JobView) -> dict[str, Any]:
    """A job in a list."""
    return {
        "id": str(job.id),
        "type": job.type,
        **state_of(job),
        "priority": job.priority_class.word,
        "executor_id": job.executor_id,
        "created_at": utc(job.created_at),
        "started_at": utc(job.started_at),
        "attempt_started_at": utc(job.attempt_started_at),
        "completed_at": utc(job.finished_at),
        "exit_code": job.exit_code,
        "message": job.message or None,
        "external_id": job.external_id,
        "array_id": None if job.array_id is None else str(job.array_id),
        "array_index": job.array_index,
    }


def hold_shown(hold: Hold) -> dict[str, Any]:
    """Who holds a job."""
    return {"by": hold.by, "operator": hold.operator, "reason": hold.reason, "since": utc(hold.since)}


def detailed(detail: JobDetail, queue_position: int = 0) -> dict[str, Any]:
    """Everything about a job; its `queue_position` is 0 unless it waits."""
    job, spec = detail.job, detail.spec
    own = spec.asked if job.contract == "jobs" else {}
    return {
        **listed(job),
        "binary_url": spec.binary_url,
        "binary_sha256": spec.binary_sha256,
        "arguments": list(spec.arguments),
        "env_variables": dict(spec.environment),
        "stdout": _text(detail.stdout, detail.stdout_truncated),
        "stderr": _text(detail.stderr, detail.stderr_truncated),
        "attempts": [attempt_shown(attempt) for attempt in detail.attempts],
        "attempt_started_at": utc(detail.attempts[-1].started_at) if detail.attempts else None,
        "effective_priority": spec.effective_priority,
        "effective_class": spec.effective_class.word,
        "queue_position": queue_position,
        "signal": job.signal,
        "attempt": job.attempt,
        "hold": None if detail.hold is None else hold_shown(detail.hold),
        "stdout_truncated": _truncated(detail, detail.stdout, detail.stdout_truncated),
        "stderr_truncated": _truncated(detail, detail.stderr, detail.stderr_truncated),
        "script": spec.script,
        "image": spec.image,
        "command": list(spec.command),
        "resources": own.get("resources", _resources_shown(spec.resources)),
        "preemptible": own.get("preemptible"),
        "timeout_seconds": own.get("timeout_seconds", spec.time_limit_s),
        "grace_seconds": own.get("grace_seconds", spec.grace_s),
        "max_retries": spec.max_retries,
        "gang": {"members": spec.members} if spec.members > 1 else None,
        "stop_reason": job.stop_reason,
        "stopped_by": job.stop_by,
        "depends_on": parents_shown(detail.depends_on),
    }


def _truncated(detail: JobDetail, shown: bytes, cut: bool) -> bool:
    # What an external executor sent is cut when it is stored; then a stream is full to within a character.
    lost = bool(detail.attempts) and detail.attempts[-1].truncated_bytes > 0
    return cut or (lost and len(shown) > OUTPUT_CAP - 4)


def _resources_shown(share: Resources | None) -> dict[str, Any] | None:
    if share is None:
        return None
    return {
        "cpus": share.cpus_milli / 1000,
        "memory_mib": share.memory_bytes // MIB,
        "gpus": share.gpus,
        "gpu_memory_mib": share.gpu_memory_bytes // MIB,
        "gpu_model": share.gpu_model,
        "gpu_shared": share.gpu_shared,
    }


def attempt_shown(attempt: AttemptView) -> dict[str, Any]:
    """One try of a job; that of a gang sums up its `members`, which stand beside it."""
    members = [{"member": one.member, **_tried(one)} for one in attempt.members]
    return {"attempt": attempt.number, **_tried(attempt), "members": members or None}


def _tried(attempt: AttemptView) -> dict[str, Any]:
    return {
        "executor_id": attempt.executor_id,
        "executor_ip": attempt.executor_ip,
        "started_at": utc(attempt.started_at),
        "ended_at": utc(attempt.ended_at),
        "status": attempt.state_word,
        "outcome": attempt.outcome,
        "exit_code": attempt.exit_code,
        "signal": attempt.signal,
        "oom": attempt.oom,
        "limit_hit": attempt.limit_hit,
        "reason": attempt.reason,
        "stopped_by": attempt.stopped_by,
        "gpu_uuids": list(attempt.gpu_uuids),
        "peak_memory_bytes": attempt.peak_memory_bytes,
        "cpu_seconds": attempt.cpu_seconds,
        "peak_cpu_cores": attempt.peak_cpu_cores,
        "peak_gpu_memory_bytes": attempt.peak_gpu_memory_bytes,
        "output_bytes": attempt.output_bytes,
        "truncated_bytes": attempt.truncated_bytes,
        "log_gap": attempt.log_gap,
        "image_digest": attempt.image_digest,
    }


def stats_shown(stats: Stats) -> dict[str, Any]:
    """Counts in the contract's words, with every word present."""
    by_status = dict.fromkeys(STATUSES, 0)
    for state, number in stats.by_state.items():
        by_status[STATUS[state]] += number
    pending = dict.fromkeys(PRIORITIES, 0) | {cls.word: n for cls, n in stats.pending_by_class.items()}
    return {
        "jobs_by_status": by_status,
        "pending_by_priority": pending,
        "active_executors": stats.active_executors,
    }


def executor_shown(executor: ExecutorView) -> dict[str, Any]:
    """An executor; job fields are null when it is idle."""
    return {
        "executor_id": executor.executor_id,
        "current_job_id": None if executor.current_job_id is None else str(executor.current_job_id),
        "job_type": executor.job_type,
        "last_heartbeat": utc(executor.last_heartbeat),
        "jobs_completed": executor.jobs_completed,
        "state": executor.state,
        "kind": executor.kind,
    }


def _text(data: bytes, cut: bool) -> str:
    """Output as text: bytes that are not UTF-8 become U+FFFD; a character that the cap cut in two is left out."""
    if cut:
        for back in range(1, min(4, len(data) + 1)):
            if data[-back] >= 0xC0:
                width = 2 if data[-back] < 0xE0 else 3 if data[-back] < 0xF0 else 4
                data = data[:-back] if width > back else data
                break
            if data[-back] < 0x80:
                break
    return data.decode("utf-8", "replace")
