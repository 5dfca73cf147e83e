"""Queues, clusters and figures in the ai contract's words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from app.api.ai.translate import QUEUES, queued
from app.domain.quantity import cpu_text, memory_text
from app.services.clusters import ClusterView, NodeView
from app.services.queues import QueueView
from app.services.statistics import Lately, Totals
from app.services.views import JobView

HOUR_S = 3600


def _queue(view: QueueView) -> dict[str, Any]:
    return {
        "name": QUEUES[view.priority_class],
        "depth": view.depth,
        "processing": view.processing,
        "max_concurrency": view.slots,
    }


def queues_shown(views: Sequence[QueueView]) -> dict[str, Any]:
    """All queues and their sums."""
    return {
        "queues": [{**_queue(view), "oldest_job_age_seconds": round(view.oldest_age_s)} for view in views],
        "total_pending": sum(view.depth for view in views),
        "total_processing": sum(view.processing for view in views),
    }


def queue_shown(view: QueueView, jobs: Sequence[JobView], hour: Totals) -> dict[str, Any]:
    """One queue, the jobs that the caller may see in it, and its last hour."""
    return {
        **_queue(view),
        "jobs": queued(jobs),
        "stats": {
            "jobs_processed_1h": hour.processed,
            "avg_wait_time_seconds": round(hour.dispatch_mean_s or 0.0, 3),
            "avg_processing_time_seconds": round(hour.run_mean_s or 0.0, 3),
        },
    }


def cluster_listed(cluster: ClusterView) -> dict[str, Any]:
    """A cluster's sums."""
    there = [node for node in cluster.nodes if node.state != "offline"]
    return {
        "name": cluster.name,
        "status": cluster.status,
        "total_nodes": len(cluster.nodes),
        "available_gpus": sum(node.free_gpus for node in there if node.state == "ready"),
        "total_gpus": sum(node.gpus for node in there),
        "running_jobs": sum(node.jobs for node in cluster.nodes),
    }


def cluster_shown(cluster: ClusterView) -> dict[str, Any]:
    """A cluster node by node."""
    there = [node for node in cluster.nodes if node.state != "offline"]
    return {
        "name": cluster.name,
        "status": cluster.status,
        "nodes": [_node(node) for node in cluster.nodes],
        "capacity": {
            "max_jobs": sum(node.slots for node in there),
            "current_jobs": sum(node.jobs for node in cluster.nodes),
        },
    }


def _node(node: NodeView) -> dict[str, Any]:
    away = node.state == "offline"
    return {
        "name": node.name,
        "status": node.state,
        "gpus": {
            "total": node.gpus,
            "available": 0 if away else node.free_gpus,
            "type": gpu_slug(node.gpu_models[0]) if node.gpu_models else None,
        },
        "cpu": {"total": cpu_text(node.cpus_milli), "available": cpu_text(0 if away else node.free_cpus_milli)},
        "memory": {
            "total": memory_text(node.memory_bytes),
            "available": memory_text(0 if away else node.free_memory_bytes),
        },
    }


def gpu_slug(model: str) -> str:
    """A GPU's name as NVML gives it as the document writes them: nvidia-a100 for "NVIDIA A100-SXM4-80GB"."""
    words = [word for word in re.split(r"[^a-z0-9]+", model.lower()) if word]
    if words[:1] != ["nvidia"]:
        words.insert(0, "nvidia")
    return "-".join(words[:3] if words[1:2] in (["tesla"], ["geforce"], ["quadro"], ["rtx"]) else words[:2])


def figures_shown(lately: Lately) -> dict[str, Any]:
    """The document's figures; a latency is 0 when nothing was measured."""
    day, hour = lately.day, lately.hour
    return {
        "jobs": {
            "total_submitted_24h": day.submitted,
            "total_completed_24h": day.completed,
            "total_failed_24h": day.failed,
            "success_rate": round(day.success_rate, 3),
        },
        "latency": {
            "dispatch_p50_ms": round((hour.dispatch_p50_s or 0.0) * 1000),
            "dispatch_p99_ms": round((hour.dispatch_p99_s or 0.0) * 1000),
            "execution_p50_seconds": round(hour.run_p50_s or 0.0, 3),
            "execution_p99_seconds": round(hour.run_p99_s or 0.0, 3),
        },
        "throughput": {
            "jobs_per_second": round(hour.processed / HOUR_S, 3),
            "peak_jobs_per_second": float(lately.peak_per_second),
        },
    }
