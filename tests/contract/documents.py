"""What the five documents list, by hand: each endpoint with its parameters, defaults, statuses, example bodies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.contract import hpc_document as hpc
from tests.contract.conftest import SHA
from tests.contract.jobs_document import (
    BULK_EXAMPLE,
    CLAIM_EXAMPLE,
    COMPLETE_EXAMPLE,
    FAIL_EXAMPLE,
    HEARTBEAT_EXAMPLE,
    SUBMIT_EXAMPLE,
)
from tests.contract.test_ai import CREATE_EXAMPLE
from tests.contract.test_gpu import FULL_EXAMPLE, FULL_TENANT


@dataclass(frozen=True)
class Endpoint:
    """One endpoint as its document has it; `answers` are its example bodies by status, None where it shows none."""

    method: str
    path: str
    answers: Mapping[int, Any]
    query: Mapping[str, Any] = field(default_factory=dict)
    sent: Any = None
    kind: str = "application/json"

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def body(text: str) -> Any:
    """A request of a document, with real digests."""
    return json.loads(text.replace("abc123...", SHA).replace("def456...", "de" * 32))


TIME, JOB_ID = "2024-01-01T12:00:00Z", "550e8400-e29b-41d4-a716-446655440000"
_SEEN = {"executor_id": "worker-1-abc123", "started_at": TIME}
_NATIVE_LISTED = {
    "id": JOB_ID, "type": "data-processing", "status": "running", "priority": "background", "created_at": TIME, **_SEEN,
}  # fmt: skip
_NATIVE_SHOWN = {
    **_NATIVE_LISTED, "binary_url": "https://example.com/binary", "binary_sha256": SHA, "arguments": ["arg1", "arg2"],
    "env_variables": {"KEY1": "value1"}, "stdout": "Job output...", "stderr": "", "exit_code": 0, "completed_at": TIME,
    "attempts": [{**_SEEN, "executor_ip": "192.168.1.100", "ended_at": TIME, "status": "completed"}],
}  # fmt: skip
JOBS = (
    Endpoint("GET", "/health", {200: {"status": "healthy", "database": "connected"}}),
    Endpoint("GET", "/metrics", {200: None}, kind="text/plain"),
    Endpoint(
        "POST", "/jobs", {201: {"id": JOB_ID, "type": "a", "status": "pending", "created_at": TIME}, 400: None},
        sent=body(SUBMIT_EXAMPLE),
    ),
    Endpoint(
        "GET", "/jobs", {200: [_NATIVE_LISTED]},
        query={"status": None, "type": None, "priority": None, "limit": 100, "offset": 0},
    ),
    Endpoint("GET", "/jobs/{id}", {200: _NATIVE_SHOWN, 404: None}),
    Endpoint("DELETE", "/jobs/{id}", {200: None, 400: None, 404: None}),
    Endpoint("POST", "/jobs/claim", {200: _NATIVE_SHOWN, 204: None}, sent=body(CLAIM_EXAMPLE)),
    Endpoint("PUT", "/jobs/{id}/heartbeat", {200: None, 404: None}, sent=body(HEARTBEAT_EXAMPLE)),
    Endpoint("PUT", "/jobs/{id}/complete", {200: None, 400: None, 404: None}, sent=body(COMPLETE_EXAMPLE)),
    Endpoint("PUT", "/jobs/{id}/fail", {200: None, 400: None, 404: None}, sent=body(FAIL_EXAMPLE)),
    Endpoint("GET", "/admin/stats", {200: {
        "jobs_by_status": {"pending": 10, "running": 5, "completed": 100, "failed": 2, "cancelled": 1},
        "pending_by_priority": {"foreground": 2, "background": 5, "best_effort": 3}, "active_executors": 3,
    }}),
    Endpoint("GET", "/admin/executors", {200: [{
        "executor_id": "worker-1-abc123", "current_job_id": JOB_ID, "job_type": "data-processing",
        "last_heartbeat": TIME, "jobs_completed": 42,
    }]}),
    Endpoint("POST", "/jobs/bulk", {201: [{"id": JOB_ID, "status": "pending"}]}, sent=body(BULK_EXAMPLE)),
    Endpoint(
        "POST", "/jobs/bulk/cancel",
        {200: {"cancelled": 2, "failed": 0, "errors": []}, 400: {"error": "a", "context": {}}},
        sent={"job_ids": [JOB_ID]},
    ),
)  # fmt: skip

_AI_CREATED = {"id": "job-abc123", "job_type": "inference", "priority": 80, "status": "pending", "created_at": TIME}
_AI_QUEUE = {"name": "high-priority", "depth": 5, "processing": 8, "max_concurrency": 50}
_AI_ERROR = {"error": {
    "code": "VALIDATION_ERROR", "message": "Invalid job configuration", "request_id": "req-xyz789",
    "details": [{"field": "priority", "message": "Priority must be between 0 and 100"}],
}}  # fmt: skip
AI = (
    Endpoint(
        "POST", "/jobs/", {201: {**_AI_CREATED, "queue_position": 5}, 400: _AI_ERROR, 401: _AI_ERROR, 403: _AI_ERROR,
                           429: _AI_ERROR},
        sent=body(CREATE_EXAMPLE),
    ),
    Endpoint(
        "GET", "/jobs/",
        {200: {"items": [{**_AI_CREATED, "started_at": TIME}], "total": 150, "limit": 50, "offset": 0}},
        query={"status": None, "job_type": None, "priority_min": 0, "limit": 50, "offset": 0},
    ),
    Endpoint("GET", "/jobs/{job_id}", {200: {
        **_AI_CREATED, "image": "pytorch-inference:v1.0", "config": {"model": "resnet50", "batch_size": 32},
        "resources": {"cpu": "2", "memory": "8Gi", "gpu": 1}, "started_at": TIME, "completed_at": None,
        "retry_count": 0, "worker_id": "worker-xyz789", "logs_url": "/api/v1/jobs/job-abc123/logs",
    }, 404: _AI_ERROR}),
    Endpoint("DELETE", "/jobs/{job_id}", {
        200: {"id": "job-abc123", "status": "cancelled", "cancelled_at": TIME}, 404: _AI_ERROR, 409: _AI_ERROR,
    }),
    Endpoint(
        "GET", "/jobs/{job_id}/logs", {200: None}, kind="text/plain",
        query={"follow": False, "tail": 100, "timestamps": True},
    ),
    Endpoint("GET", "/queues/", {200: {
        "queues": [{**_AI_QUEUE, "oldest_job_age_seconds": 120}], "total_pending": 47, "total_processing": 18,
    }}),
    Endpoint("GET", "/queues/{queue_name}", {200: {
        **_AI_QUEUE, "jobs": [{"id": "job-abc123", "priority": 100, "queued_at": TIME}],
        "stats": {"jobs_processed_1h": 250, "avg_wait_time_seconds": 12.5, "avg_processing_time_seconds": 45.2},
    }}),
    Endpoint("GET", "/clusters/", {200: {"clusters": [{
        "name": "gpu-cluster", "status": "healthy", "total_nodes": 10, "available_gpus": 24, "total_gpus": 40,
        "running_jobs": 16,
    }]}}),
    Endpoint("GET", "/clusters/{cluster_name}", {200: {
        "name": "gpu-cluster", "status": "healthy", "nodes": [{
            "name": "gpu-node-01", "status": "ready", "gpus": {"total": 4, "available": 2, "type": "nvidia-a100"},
            "cpu": {"total": "32", "available": "16"}, "memory": {"total": "256Gi", "available": "128Gi"},
        }], "capacity": {"max_jobs": 500, "current_jobs": 156},
    }}),
    Endpoint("GET", "/metrics/", {200: {
        "jobs": {"total_submitted_24h": 12500, "total_completed_24h": 12350, "total_failed_24h": 150,
                 "success_rate": 0.988},
        "latency": {"dispatch_p50_ms": 12, "dispatch_p99_ms": 45, "execution_p50_seconds": 120,
                    "execution_p99_seconds": 450},
        "throughput": {"jobs_per_second": 4.2, "peak_jobs_per_second": 8.5},
    }}),
    Endpoint("GET", "/health/live", {200: {"status": "ok"}}),
    Endpoint("GET", "/health/ready", {
        200: {"status": "ok", "checks": {"database": "ok", "redis": "ok", "kubernetes": "ok"}},
        503: {"status": "degraded", "checks": {"database": "ok", "redis": "error", "kubernetes": "ok"}},
    }),
)  # fmt: skip

_COMPUTE_ERRORS = {
    400: {"error": "invalid_request"}, 401: {"error": "unauthorized"}, 403: {"error": "forbidden"},
    404: {"error": "not_found"}, 429: {"error": "rate_limited"}, 500: {"error": "internal_error"},
    503: {"error": "dependency_down"},
}  # fmt: skip
_CONFLICT = {409: {"error": "version_conflict"}}
COMPUTE = (
    Endpoint(
        "POST", "/jobs", {201: {"job_id": "job_7", "state": "queued"}, **_COMPUTE_ERRORS, **_CONFLICT},
        sent={"image": "repo/transform:24", "cmd": ["/app/run"], "cpu": 2, "mem_gib": 4, "env": {"TZ": "Asia/Kolkata"}},
    ),
    Endpoint("GET", "/jobs/{id}/logs", {200: {"lines": ["..."]}, **_COMPUTE_ERRORS}),
    Endpoint(
        "POST", "/jobs/{id}/stop", {200: {"job_id": "job_7", "state": "stopping"}, **_COMPUTE_ERRORS, **_CONFLICT},
        sent={"reason": "operator_request"},
    ),
)  # fmt: skip

_GPU_REFUSED = {400: {"error": "Invalid request body"}, 500: {"error": "Failed to process request"}}
GPU = (
    Endpoint(
        "POST", "/jobs",
        {201: {"job_id": "job-1234567890", "status": "submitted", "message": "Job submitted successfully"},
         403: {"error": "Tenant quota exceeded"}, **_GPU_REFUSED},
        sent=body(FULL_EXAMPLE),
    ),
    Endpoint("GET", "/jobs/{jobID}", {200: {
        "job_id": "job-1234567890", "state": "running", "message": "", "allocated_gpus": ["gpu-1", "gpu-2"],
        "node_name": "node-1", "queue_position": 0, "estimated_wait": "0s",
    }, 404: {"error": "Job not found"}}),
    Endpoint("GET", "/jobs", {200: {"jobs": [{
        "id": "job-1234567890", "tenant_id": "tenant-123", "name": "training-job", "state": "running", "priority": 500,
        "gpu_count": 2, "submitted_at": TIME, "started_at": TIME,
    }], "total": 1}}, query={"tenant_id": None, "state": None, "limit": 50, "offset": 0}),
    Endpoint("DELETE", "/jobs/{jobID}", {
        200: {"message": "Job cancelled successfully"}, 404: {"error": "Job not found"},
    }),
    Endpoint("POST", "/tenants", {201: {
        "id": "tenant-1234567890", "name": "research-team", "max_gpus": 10, "current_gpus": 0, "priority_tier": "high",
        "active": True, "created_at": TIME,
    }, **_GPU_REFUSED}, sent={**body(FULL_TENANT), "name": "string"}),
    Endpoint("GET", "/cluster/status", {200: {
        "total_gpus": 32, "available_gpus": 20, "total_nodes": 4, "online_nodes": 4, "total_jobs": 15,
        "pending_jobs": 5, "running_jobs": 10,
    }}),
    Endpoint("GET", "/health", {200: {"status": "healthy"}}),
)  # fmt: skip

_HPC_ERROR = {"error": "error_code", "message": "Human-readable description"}
HPC = (
    Endpoint("GET", "/health", {200: {"status": "healthy", "timestamp": TIME, "version": "1.0.0"}}),
    Endpoint(
        "GET", "/jobs", {200: {"jobs": [hpc.SHOWN_EXAMPLE], "total": 1, "limit": 100, "offset": 0}},
        query={"state": None, "user": None, "node": None, "limit": 100, "offset": 0},
    ),
    Endpoint(
        "POST", "/jobs", {201: hpc.CREATED_EXAMPLE, 400: _HPC_ERROR, 409: _HPC_ERROR}, sent=body(hpc.CREATE_EXAMPLE)
    ),
    Endpoint("GET", "/jobs/{jobId}", {200: hpc.SHOWN_EXAMPLE, 404: _HPC_ERROR}),
    Endpoint(
        "PATCH", "/jobs/{jobId}", {200: hpc.SHOWN_EXAMPLE, 400: _HPC_ERROR, 404: _HPC_ERROR},
        sent=body(hpc.UPDATE_EXAMPLE),
    ),
    Endpoint("DELETE", "/jobs/{jobId}", {204: None, 404: _HPC_ERROR}),
    Endpoint(
        "GET", "/jobs/{jobId}/metrics",
        {200: {"job_id": "job-001", "samples": [hpc.RECORDED_EXAMPLE], "total": 2}, 404: _HPC_ERROR},
        query={"start_time": None, "end_time": None, "limit": 1000},
    ),
    Endpoint(
        "POST", "/jobs/{jobId}/metrics", {201: hpc.RECORDED_EXAMPLE, 400: _HPC_ERROR, 404: _HPC_ERROR},
        sent=body(hpc.RECORD_EXAMPLE),
    ),
)  # fmt: skip

DOCUMENTS: Mapping[str, tuple[Endpoint, ...]] = {"jobs": JOBS, "ai": AI, "compute": COMPUTE, "gpu": GPU, "hpc": HPC}
