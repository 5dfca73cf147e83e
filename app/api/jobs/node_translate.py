"""Nodes in the jobs contract's words and units."""

from __future__ import annotations

from typing import Any

from app.api.answers import utc
from app.services.operate import Amount, DrainState, GpuState, NodeDetail, RunningJob

_READINGS = ("utilization_percent", "temperature_celsius", "memory_used_bytes", "processes")


def node_shown(node: NodeDetail) -> dict[str, Any]:
    """A node in a list."""
    return {
        "name": node.name,
        "kind": node.kind,
        "cluster": node.cluster,
        "state": node.state,
        "ip": node.ip,
        "version": node.version,
        "runners": list(node.runners),
        "labels": dict(node.labels),
        "operator_labels": dict(node.operator_labels),
        "registered_at": utc(node.registered_at),
        "last_seen_at": utc(node.last_seen_at),
        "silent_seconds": round(node.silent_s, 1),
        "slots": _amount(node.slots),
        "cpus": _amount(node.cpus_milli, 1000),
        "memory_bytes": _amount(node.memory_bytes),
        "gpus": [_gpu(gpu) for gpu in node.gpus],
        "jobs": node.jobs,
        "drain": None if node.drain is None else _drain(node.drain),
    }


def node_detailed(node: NodeDetail) -> dict[str, Any]:
    """A node with its jobs."""
    return {**node_shown(node), "running": [_job(job) for job in node.running]}


def _amount(amount: Amount, unit: int = 1) -> dict[str, float]:
    return {"total": amount.total / unit, "free": amount.free / unit} if unit > 1 else vars(amount)


def _gpu(gpu: GpuState) -> dict[str, Any]:
    return {
        "uuid": gpu.uuid,
        "index": gpu.index,
        "model": gpu.model,
        "memory_bytes": gpu.memory_bytes,
        "state": gpu.state,
        "reason": gpu.reason,
        "out_by": gpu.out_by,
        "out_since": gpu.out_at,
        "job_id": None if gpu.job_id is None else str(gpu.job_id),
        "job_ids": [str(job_id) for job_id in gpu.job_ids],
        "sharing": gpu.sharing,
        "slice_bytes": gpu.slice_bytes,
        **{name: gpu.readings.get(name) for name in _READINGS},
    }


def _drain(drain: DrainState) -> dict[str, Any]:
    return {"reason": drain.reason, "by": drain.by, "since": utc(drain.since), "deadline": utc(drain.deadline)}


def _job(job: RunningJob) -> dict[str, Any]:
    cause = f" ({job.stop_cause.word})" if job.stop_cause is not None else ""
    return {
        "id": str(job.id),
        "type": job.type,
        "state_detail": job.state.word + cause,
        "tenant": job.tenant,
        "since": utc(job.since),
        "cpus": job.cpus_milli / 1000,
        "memory_bytes": job.memory_bytes,
        "gpus": list(job.gpu_uuids),
    }
