"""Who cancelled a job, and what its message says besides."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from app.domain.explain import Ask, Code, NodeNow, nearest, node_causes
from app.domain.resources import Free, Resources
from app.domain.states import JobState, StopCause
from app.domain.whereabouts import JobNow, job_cause

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
AT = "at 2026-01-01T12:00:00Z"
LOST = "its node's lease ran out"


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"stop_by": "ann"}, f"by ann {AT}."),
        ({"stop_by": "ann", "signal": 15, "stop_reason": "enough"}, f"by ann {AT}: enough."),
        ({"stop_by": "ann", "message": LOST}, f"by ann {AT} ({LOST})."),
        ({"stop_by": "ann", "message": LOST, "stop_reason": "enough"}, f"by ann {AT}: enough ({LOST})."),
        ({"stop_by": "ann", "attempt": 2}, f"by ann {AT} after 2 attempts."),
        ({"stop_by": "dependency", "message": "a failed", "stop_reason": "a failed"}, f"{AT}: a failed."),
        ({"signal": 15}, f"by signal 15 {AT}."),
    ],
)
def test_a_cancelled_job_says_who_cancelled_it(facts: dict[str, Any], told: str) -> None:
    job = JobNow(JobState.CANCELLED, stop_cause=StopCause.CANCEL, finished_at=NOW, **facts)
    cause = job_cause(job, NOW)
    assert cause is not None
    assert (cause.code, cause.message) == (Code.CANCELLED, f"The job was cancelled {told}")


@pytest.mark.parametrize(
    ("state", "told"),
    [("draining", "No node takes jobs: vm is draining."), ("offline", "No node is live: vm is offline.")],
)
def test_a_node_that_drains_is_live(state: str, told: str) -> None:
    room = Free(1, 1000, 2**30, ())
    ask = Ask(Resources(1000, 2**20))
    (cause,) = node_causes(nearest([NodeNow("vm", room, room, state=state)], ask), ask, [], 0)
    assert (cause.code, cause.message) == (Code.NO_NODES, told)
