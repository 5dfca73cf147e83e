"""The one state table of a job: every state, every event, and what follows.

The schema repeats it as CHECKs and in the trigger that guards transitions; a test holds the two together. Numbers are
stored, so they never change.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum


class JobState(IntEnum):
    """Where a job is in its life."""

    PENDING = 0
    STARTING = 1
    RUNNING = 2
    STOPPING = 3
    COMPLETED = 4
    FAILED = 5
    CANCELLED = 6

    @property
    def word(self) -> str:
        """The state's name in lower case."""
        return self.name.lower()


class StopCause(IntEnum):
    """Why a job is being stopped; the greater number wins when causes meet."""

    REQUEUE = 0
    DRAIN = 1
    PREEMPT = 2
    TIME_LIMIT = 3
    CANCEL = 4

    @property
    def word(self) -> str:
        """The cause's name in lower case."""
        return self.name.lower()


class Reason(StrEnum):
    """Why a pending job is pending."""

    NEW = "new"
    BACKOFF = "backoff"
    HOLD = "hold"
    DEPENDENCY = "dependency"
    ARRAY = "array"
    LOST = "lost"
    PREEMPTED = "preempted"
    DRAINED = "drained"
    REQUEUED = "requeued"
    NODE_FAULT = "node_fault"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    LOST = "lost"
    PREEMPTED = "preempted"
    DRAINED = "drained"
    REQUEUED = "requeued"
    NODE_FAULT = "node_fault"
    REFUSED = "refused"


ACTIVE = frozenset({JobState.STARTING, JobState.RUNNING, JobState.STOPPING})
TERMINAL = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED})

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.PENDING: frozenset({JobState.STARTING, JobState.RUNNING, JobState.CANCELLED, JobState.FAILED}),
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.STOPPING, *TERMINAL, JobState.PENDING}),
    JobState.RUNNING: frozenset({JobState.STOPPING, *TERMINAL, JobState.PENDING}),
    JobState.STOPPING: frozenset({JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.PENDING}),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def may_follow(before: JobState, after: JobState) -> bool:
    """Whether a job may go from `before` to `after`; staying is always allowed."""
    return before == after or after in TRANSITIONS[before]


def stronger(one: StopCause | None, other: StopCause) -> StopCause:
    """The cause that decides the end when both were given: cancel > time limit > preempt > drain > requeue."""
    return other if one is None or other > one else one
