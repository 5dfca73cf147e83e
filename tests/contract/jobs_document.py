"""What the document of the jobs contract prints: example bodies, key sets, the form of errors."""

from __future__ import annotations

import re
from typing import Any

from tests.contract.conftest import SHA

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
ADDED = {"state_detail", "reason"}
LISTED = {"id", "type", "status", "priority", "executor_id", "created_at", "started_at"}
SHOWN = LISTED | {
    "binary_url", "binary_sha256", "arguments", "env_variables", "stdout", "stderr", "exit_code", "completed_at",
    "attempts",
}  # fmt: skip
ATTEMPT = {"executor_id", "executor_ip", "started_at", "ended_at", "status"}

SUBMIT_EXAMPLE = """{
  "type": "data-processing",
  "binary_url": "https://example.com/binary",
  "binary_sha256": "abc123...",
  "arguments": ["arg1", "arg2"],
  "env_variables": {
    "KEY1": "value1",
    "KEY2": "value2"
  },
  "priority": "background"
}"""
BULK_EXAMPLE = """[
  {
    "type": "job-1",
    "binary_url": "https://example.com/binary1",
    "binary_sha256": "abc123...",
    "priority": "background"
  },
  {
    "type": "job-2",
    "binary_url": "https://example.com/binary2",
    "binary_sha256": "def456...",
    "priority": "foreground"
  }
]"""
CLAIM_EXAMPLE = '{\n  "executor_id": "worker-1-abc123",\n  "executor_ip": "192.168.1.100"\n}'
HEARTBEAT_EXAMPLE = '{\n  "executor_id": "worker-1-abc123"\n}'
COMPLETE_EXAMPLE = """{
  "executor_id": "worker-1-abc123",
  "stdout": "Job output...",
  "stderr": "",
  "exit_code": 0
}"""
FAIL_EXAMPLE = """{
  "executor_id": "worker-1-abc123",
  "stdout": "Partial output...",
  "stderr": "Error messages...",
  "exit_code": 1,
  "error_message": "Binary execution failed"
}"""


def raw(text: str) -> dict[str, Any]:
    """A request body as the document prints it, with real digests."""
    return {
        "data": text.replace("abc123...", SHA).replace("def456...", "de" * 32),
        "content_type": "application/json",
    }


def is_error(answer: Any, status: int) -> dict[str, Any]:
    """Checks the documented error form; returns its context."""
    assert answer.status_code == status, answer.text
    assert answer.is_json
    assert set(answer.json) == {"error", "context"}
    assert isinstance(answer.json["error"], str)
    assert answer.json["error"]
    assert isinstance(answer.json["context"], dict)
    return dict(answer.json["context"])
