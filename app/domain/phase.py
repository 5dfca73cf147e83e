"""The phases of a job as readers tell them apart: finer than states, so that every contract's words are unions of them.

The schema repeats `phase_of` as the function job_phase, for filters and counts; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from app.domain.states import JobState, Reason, StopCause


class Phase(IntEnum):
    """Where a job stands for a reader. Numbers are stored, so they never change."""

    READY = 0
    """Pending, and waiting for room only."""
    WAITING = 1
    """Pending, and not to be started yet: backoff, hold."""
    PREEMPTED = 2
    """Pending again because another job took its place."""
    STARTING = 3
    RUNNING = 4
    CANCELLING = 5
    """Stopping, to end in cancelled."""
    STOPPING = 6
    """Stopping for any other cause."""
    COMPLETED = 7
    FAILED = 8
    CANCELLED = 9


STATE_OF: dict[Phase, JobState] = {
    Phase.READY: JobState.PENDING,
    Phase.WAITING: JobState.PENDING,
    Phase.PREEMPTED: JobState.PENDING,
    Phase.STARTING: JobState.STARTING,
    Phase.RUNNING: JobState.RUNNING,
    Phase.CANCELLING: JobState.STOPPING,
    Phase.STOPPING: JobState.STOPPING,
    Phase.COMPLETED: JobState.COMPLETED,
    Phase.FAILED: JobState.FAILED,
    Phase.CANCELLED: JobState.CANCELLED,
}


def phase_of(state: JobState, ready: bool, reason: str | None, cause: StopCause | None) -> Phase:
    """The phase of a job with these columns."""
    if state == JobState.PENDING:
        if reason == Reason.PREEMPTED:
            return Phase.PREEMPTED
        return Phase.READY if ready else Phase.WAITING
    if state == JobState.STOPPING:
        return Phase.CANCELLING if cause == StopCause.CANCEL else Phase.STOPPING
    return Phase[state.name]


def phases_of(states: Iterable[JobState]) -> frozenset[Phase]:
    """All phases of these states."""
    wanted = frozenset(states)
    return frozenset(phase for phase, state in STATE_OF.items() if state in wanted)
