"""What the document of the hpc contract prints: example bodies and answers, tables of fields, the form of errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

CREATE_EXAMPLE = """{
  "id": "job-001",
  "user": "alice",
  "nodes": ["node-01", "node-02"]
}"""
CREATED_EXAMPLE: dict[str, Any] = {
    "id": "job-001",
    "user": "alice",
    "nodes": ["node-01", "node-02"],
    "state": "running",
    "start_time": "2026-01-20T10:00:00Z",
    "cpu_usage": 0,
    "memory_usage_mb": 0,
}
UPDATE_EXAMPLE = """{
  "state": "completed",
  "cpu_usage": 80.0,
  "memory_usage_mb": 8192,
  "gpu_usage": 60.0
}"""
RECORD_EXAMPLE = """{
  "cpu_usage": 75.5,
  "memory_usage_mb": 4096,
  "gpu_usage": 50.0
}"""
SHOWN_EXAMPLE: dict[str, Any] = CREATED_EXAMPLE | {"cpu_usage": 75.5, "memory_usage_mb": 4096, "gpu_usage": 50.0}
RECORDED_EXAMPLE: dict[str, Any] = {
    "timestamp": "2026-01-20T10:00:00Z",
    "cpu_usage": 75.5,
    "memory_usage_mb": 4096,
    "gpu_usage": 50.0,
}
STATES = ("pending", "running", "completed", "failed", "cancelled")

ADDED = {"end_time", "runtime_seconds", "state_detail", "reason", "fabric_id"}
"""Fields of a job that the document lacks."""

KINDS: Mapping[str, type | tuple[type, ...]] = {
    "id": str, "user": str, "nodes": list, "state": str, "start_time": str, "timestamp": str,
    "cpu_usage": (int, float), "memory_usage_mb": int, "gpu_usage": (int, float),
}  # fmt: skip

METRICS: Mapping[str, tuple[str, set[str]]] = {
    "hpc_job_runtime_seconds": ("gauge", {"job_id", "user", "node"}),
    "hpc_job_cpu_usage_percent": ("gauge", {"job_id", "user", "node"}),
    "hpc_job_memory_usage_bytes": ("gauge", {"job_id", "user", "node"}),
    "hpc_job_gpu_usage_percent": ("gauge", {"job_id", "user", "node"}),
    "hpc_job_state_total": ("gauge", {"state"}),
    "hpc_job_total": ("counter", set()),
}
METRIC_LINE = 'hpc_job_cpu_usage_percent{job_id="job-001",node="node-01",user="alice"} 75.5'


def raw(text: str) -> dict[str, Any]:
    """A request body exactly as the document prints it."""
    return {"data": text, "content_type": "application/json"}


def has_kinds(shown: Mapping[str, Any]) -> None:
    """Checks the type of every documented field."""
    for name, value in shown.items():
        if name in KINDS:
            assert isinstance(value, KINDS[name]) and not isinstance(value, bool), (name, value)
    for name in ("start_time", "timestamp"):
        assert name not in shown or TIME.fullmatch(shown[name]), shown[name]


def is_like(shown: Mapping[str, Any], example: Mapping[str, Any]) -> None:
    """Checks a job against an example: the same keys besides the added ones, the same values but for times."""
    has_kinds(shown)
    assert set(shown) - ADDED == set(example)
    for name, value in example.items():
        assert name in {"start_time", "timestamp"} or shown[name] == value, (name, shown[name])


def is_error(answer: Any, status: int, code: str) -> str:
    """Checks the documented error form; returns its message."""
    assert answer.status_code == status, answer.text
    assert answer.is_json
    assert set(answer.json) == {"error", "message"}, answer.text
    assert answer.json["error"] == code, answer.text
    assert isinstance(answer.json["message"], str)
    assert answer.json["message"]
    return str(answer.json["message"])


def series(text: str) -> dict[str, dict[str, float]]:
    """Prometheus text as family -> labels as printed -> value, after a check that every line has one of its forms."""
    found: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            found.setdefault(line.split()[2], {})
        elif line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? ([0-9.eE+-]+)", line)
            assert match is not None, line
            assert match[2] not in found[match[1]], f"twice: {line}"
            found[match[1]][match[2] or ""] = float(match[3])
    return found
