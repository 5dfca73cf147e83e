"""Arrays and dependencies in the words of the jobs contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.api.answers import utc
from app.domain.array import ArrayAsked, parse_indices
from app.domain.dependency import After, Terms
from app.domain.errors import NotFound
from app.domain.states import JobState
from app.services.arrays import ArrayView
from app.services.views import ParentView

ENDED = {"completed": JobState.COMPLETED, "failed": JobState.FAILED, "cancelled": JobState.CANCELLED}
STATES: Mapping[str, tuple[JobState, ...]] = {
    "pending": (JobState.PENDING,),
    "running": (JobState.STARTING, JobState.RUNNING, JobState.STOPPING),
    **{word: (state,) for word, state in ENDED.items()},
}


def parse_array_id(text: str) -> UUID:
    """The array's id. Raises NotFound for anything that is no UUID in its usual form."""
    try:
        found = UUID(text)
    except ValueError:
        found = None
    if found is None or str(found) != text.lower():
        raise NotFound("Array not found", array_id=text[:100])
    return found


def array_asked(asked: Mapping[str, Any]) -> ArrayAsked:
    """How many jobs, and how many of them at a time."""
    return ArrayAsked(asked["count"], asked["max_parallel"])


def after(parents: Sequence[tuple[UUID, str]]) -> tuple[After, ...]:
    """What a job depends on."""
    return tuple(After(parent, Terms[word.upper()]) for parent, word in parents)


def ranges_of(indices: str | None, view: ArrayView) -> list[tuple[int, int]] | None:
    """The ranges that a text names of an array; None is all of it."""
    return None if indices is None else parse_indices(indices, view.counts.size)


def array_submitted(array: ArrayView) -> dict[str, Any]:
    """The answer to the submit of an array; `id` is the array's."""
    return {
        "id": str(array.id),
        "type": array.type,
        "status": "pending",
        "created_at": utc(array.created_at),
        "state_detail": "pending",
        "reason": array.reason or "new",
        "array": {"count": array.counts.size, "max_parallel": array.max_parallel},
    }


def array_listed(array: ArrayView) -> dict[str, Any]:
    """An array with its counts."""
    counts = array.counts
    return {
        "id": str(array.id),
        "type": array.type,
        "priority": array.priority_class.word,
        "status": array.status,
        "reason": array.reason,
        "message": array.message or None,
        "count": counts.size,
        "max_parallel": array.max_parallel,
        "counts": {word: getattr(counts, word) for word in STATES},
        "unexpanded": counts.unmade,
        "progress": round(counts.progress, 6),
        "created_at": utc(array.created_at),
        "completed_at": utc(array.finished_at),
        "stopped_by": array.stop_by,
        "stop_reason": array.stop_reason,
    }


def parents_shown(parents: Sequence[ParentView]) -> list[dict[str, Any]]:
    """What a job or an array depends on, first what it waits for."""
    return [
        {
            "job": str(parent.id),
            "on": parent.terms.word,
            "array": parent.is_array,
            "satisfied": parent.settled,
            "state_detail": parent.state,
        }
        for parent in parents
    ]
