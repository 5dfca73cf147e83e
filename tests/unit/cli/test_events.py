"""Lines of `cfab events`."""

from __future__ import annotations

from typing import Any

import click
import pytest

from app.cli.events import line

EVENT: dict[str, Any] = {
    "time": "2024-01-01T12:00:00Z", "job_id": "0190", "type": "train", "previous": "starting",
    "state_detail": "running",
    "reason": None, "stop_cause": None, "attempt": 1, "executor_id": "node-1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "end"),
    [
        ({}, "0190  train  starting → running  on node-1"),
        ({"previous": None, "state_detail": "pending", "reason": "new"}, "train  pending  new"),
        ({"previous": "running", "state_detail": "pending", "reason": "lost", "attempt": 2},
         "running → pending  lost, attempt 2"),
        ({"previous": "stopping", "state_detail": "cancelled", "stop_cause": "cancel"},
         "stopping → cancelled  cancel, on node-1"),
        ({"type": None, "executor_id": "a\x1b[31m"}, "-  starting → running  on a�[31m"),
    ],
)  # fmt: skip
def test_tell_what_became_of_a_job(changes: dict[str, Any], end: str) -> None:
    assert click.unstyle(line({**EVENT, **changes})).endswith(end)
