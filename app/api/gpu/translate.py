"""The gpu contract's words on one side, the domain's on the other; the only place that knows both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.api.answers import utc
from app.api.ids import parse_id, shown_id
from app.domain.errors import FabricError, Invalid, KeyReused, NotFound, QuotaExceeded, StateConflict
from app.domain.job import JobRequest
from app.domain.phase import Phase
from app.domain.priority import class_of
from app.domain.resources import MIB, Resources
from app.domain.states import JobState
from app.domain.tenant import NewTenant, Quota, Tenant, Usage
from app.services.clusters import ClusterView
from app.services.inspect import JobFilter
from app.services.views import JobDetail, JobView
from config.settings import Settings

JOB, TENANT = "job-", "tenant-"
MB = 10**6
"""16000 MB must fit a card that is sold as 16 GB, so that megabytes are decimal here."""

STATE: Mapping[Phase, str] = {
    Phase.READY: "pending",
    Phase.WAITING: "pending",
    Phase.PREEMPTED: "preempted",
    Phase.STARTING: "running",
    Phase.RUNNING: "running",
    Phase.CANCELLING: "cancelled",
    Phase.STOPPING: "running",
    Phase.COMPLETED: "completed",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "cancelled",
}
"""Each phase's word in this contract."""

_FIXED = {401: "Unauthorized", 405: "Method not allowed", 429: "Rate limit exceeded", 500: "Failed to process request"}


class GpuErrorForm:
    """`{"error": text}` with the fields' problems beside it; a wrong state is 400 here, a reused key 409."""

    statuses: Mapping[type[FabricError], int] = {StateConflict: 400, KeyReused: 409}

    def body(self, status: int, error: FabricError) -> Any:
        """The answer's JSON value."""
        if isinstance(error, QuotaExceeded):
            return {"error": "Tenant quota exceeded", "details": [{"message": error.message}]}
        if isinstance(error, Invalid):
            problems = [{"field": one.field, "message": one.message} for one in error.problems]
            return {"error": "Invalid request body", "details": problems or [{"message": error.message}]}
        if status in _FIXED:
            return {"error": _FIXED[status], "details": [{"message": error.message}]}
        return {"error": error.message}


def parse_job_id(text: str) -> UUID:
    """The job's id. Raises NotFound for anything that this contract never showed."""
    return parse_id(JOB, text)


def tenant_key(text: str) -> str:
    """What a tenant is found by: the UUID of an id that this contract showed, else the text as it is, a name or id."""
    try:
        return str(parse_id(TENANT, text, "Tenant"))
    except NotFound:
        return text


def job_request(asked: Mapping[str, Any], tenant: Tenant, settings: Settings) -> JobRequest:
    """A parsed body as the domain's request."""
    priority = asked.get("priority", TIER_PRIORITY[tenant.tier.value])
    minutes = asked.get("max_runtime_minutes")
    members = asked["gpu_count"] if asked["gang_scheduling"] and asked["gpu_count"] > 1 else 1
    return JobRequest(
        type=asked["name"],
        priority_class=class_of(priority),
        priority=priority,
        contract="gpu",
        environment=asked["environment"],
        resources=_resources(asked, settings, members),
        members=members,
        time_limit_s=None if minutes is None else minutes * 60,
        asked={**{name: asked[name] for name in _KEPT if name in asked}, "priority": priority},
        **_program(asked),
    )


TIER_PRIORITY = {"low": 100, "medium": 500, "high": 1000, "critical": 5000}
"""The document's priority of each tier: that of its jobs that name none."""
_KEPT = ("gpu_count", "gpu_memory_mb", "cpu_cores", "memory_mb", "gang_scheduling", "max_runtime_minutes")


def _program(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What to run, and where: command and args win over the script; without an image it runs in the process sandbox."""
    command, args, script = asked["command"], asked["args"], asked.get("script")
    if "image" in asked:
        shell = ["/bin/sh", "-c", script, "sh"] if script and not command else command
        return {"runner": "container", "image": asked["image"], "command": tuple(shell), "arguments": tuple(args)}
    if command:
        return {"runner": "process", "script": 'exec "$@"', "arguments": (*command, *args)}
    return {"runner": "process", "script": script, "arguments": tuple(args)}


def _resources(asked: Mapping[str, Any], settings: Settings, members: int) -> Resources | None:
    """What each member holds: one GPU and an equal part of the rest, so that any GPUs of the fabric will do."""
    cpus, memory = asked.get("cpu_cores"), asked.get("memory_mb")
    if cpus is None and memory is None and not asked["gpu_count"]:
        return None
    return Resources(
        cpus_milli=settings.default_cpus_milli if cpus is None else max(1, math.ceil(round(cpus * 1000) / members)),
        memory_bytes=settings.default_memory_mib * MIB if memory is None else -(-memory * MB // members),
        gpus=asked["gpu_count"] // members,
        gpu_memory_bytes=asked["gpu_memory_mb"] * MB if asked["gpu_count"] else 0,
    )


def job_filter(asked: Mapping[str, Any]) -> JobFilter:
    """The query of a list as the service's filter."""
    word = asked.get("state")
    return JobFilter(phases=None if word is None else frozenset(p for p, shown in STATE.items() if shown == word))


def submitted(job_id: UUID) -> dict[str, Any]:
    """The answer to a submit."""
    return {"job_id": shown_id(JOB, job_id), "status": "submitted", "message": "Job submitted successfully"}


def listed(detail: JobDetail) -> dict[str, Any]:
    """A job in a list."""
    job, spec = detail.job, detail.spec
    own = spec.asked if job.contract == "gpu" else {}
    return {
        "id": shown_id(JOB, job.id),
        "tenant_id": shown_id(TENANT, job.tenant_id),
        "name": job.type,
        "state": STATE[job.phase],
        "priority": own.get("priority", spec.effective_priority),
        "gpu_count": own.get("gpu_count", 0 if spec.resources is None else spec.resources.gpus * spec.members),
        "submitted_at": utc(job.created_at),
        "started_at": utc(job.started_at),
        "state_detail": job.state.word,
        "reason": job.reason,
    }


def shown(detail: JobDetail, position: int, wait_s: float) -> dict[str, Any]:
    """How a job stands; `position` 1 is next, 0 is not waiting."""
    job, last = detail.job, detail.attempts[-1] if detail.attempts else None
    return {
        "job_id": shown_id(JOB, job.id),
        "state": STATE[job.phase],
        "message": message_of(job, None if last is None else last.reason),
        "allocated_gpus": [] if last is None else list(last.gpu_uuids),
        "node_name": "" if last is None else last.executor_id,
        "queue_position": position,
        "estimated_wait": go_duration(wait_s),
        "state_detail": job.state.word,
        "reason": job.reason,
        "stopping": job.state == JobState.STOPPING,
        "exit_code": job.exit_code,
        "signal": job.signal,
        "external_id": job.external_id,
        "effective_priority": detail.spec.effective_priority,
    }


def message_of(job: JobView, ended_because: str | None) -> str:
    """Why the job waits or failed; empty otherwise."""
    if job.state == JobState.PENDING:
        return job.message or (job.reason if job.reason and job.reason != "new" else "")
    if job.state != JobState.FAILED:
        return ""
    how = f"exit code {job.exit_code}" if job.exit_code is not None else f"signal {job.signal}" if job.signal else ""
    return job.message or ended_because or how


def go_duration(seconds: float) -> str:
    """Whole seconds as Go's time.Duration prints them: 0s, 1m30s, 2h0m5s."""
    left = max(0, round(seconds))
    hours, minutes, rest = left // 3600, left // 60 % 60, left % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def new_tenant(asked: Mapping[str, Any]) -> NewTenant:
    """A parsed body as the domain's ask."""

    def scaled(name: str, unit: int) -> int | None:
        value = asked.get(name)
        return None if value is None else round(value * unit)

    return NewTenant(
        name=asked["name"],
        email=asked.get("email") or None,
        organization=asked.get("organization") or None,
        tier=asked["priority_tier"],
        quota=Quota(
            jobs=asked.get("max_concurrent_jobs"),
            cpus_milli=scaled("max_cpu_cores", 1000),
            memory_bytes=scaled("max_memory_mb", MB),
            gpus=asked.get("max_gpus"),
            gpu_memory_bytes=scaled("max_gpu_memory_mb", MB),
        ),
        allow_preemption=asked["allow_preemption"],
        can_preempt_others=asked["can_preempt_others"],
    )


def tenant_shown(tenant: Tenant, usage: Usage) -> dict[str, Any]:
    """A tenant and the GPUs that it holds now."""
    quota = tenant.quota
    return {
        "id": shown_id(TENANT, tenant.id),
        "name": tenant.name,
        "max_gpus": quota.gpus,
        "current_gpus": usage.gpus,
        "priority_tier": tenant.tier.value,
        "active": tenant.active,
        "created_at": utc(tenant.created_at),
        "email": tenant.email,
        "organization": tenant.organization,
        "max_gpu_memory_mb": None if quota.gpu_memory_bytes is None else quota.gpu_memory_bytes // MB,
        "max_cpu_cores": None if quota.cpus_milli is None else quota.cpus_milli / 1000,
        "max_memory_mb": None if quota.memory_bytes is None else quota.memory_bytes // MB,
        "max_concurrent_jobs": quota.jobs,
        "allow_preemption": tenant.allow_preemption,
        "can_preempt_others": tenant.can_preempt_others,
    }


def cluster_shown(clusters: Sequence[ClusterView], counts: Mapping[Phase, int]) -> dict[str, Any]:
    """The cluster now; a preempted job waits, so it counts as pending."""
    words = {word: sum(n for phase, n in counts.items() if STATE[phase] == word) for word in set(STATE.values())}
    pending = words["pending"] + words["preempted"]
    nodes = [node for cluster in clusters for node in cluster.nodes]
    return {
        "total_gpus": sum(node.gpus for node in nodes if node.state != "offline"),
        "available_gpus": sum(node.free_gpus for node in nodes if node.state == "ready"),
        "total_nodes": len(nodes),
        "online_nodes": sum(node.state != "offline" for node in nodes),
        "total_jobs": pending + words["running"],
        "pending_jobs": pending,
        "running_jobs": words["running"],
    }
