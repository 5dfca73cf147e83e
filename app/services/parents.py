"""What a job or an array depends on, and why it waits: read only."""

from __future__ import annotations

from uuid import UUID

from app.domain.dependency import Terms
from app.domain.explain import Cause, Code
from app.domain.states import JobState
from app.services.views import ParentView
from app.storage import dependencies as stored
from app.storage.database import Row, Tx

SHOWN = 1000
NAMED = 10


def parents_in(tx: Tx, child_id: UUID) -> list[ParentView]:
    """What a job or an array depends on, first what it waits for yet."""
    return [
        ParentView(
            id=row.parent_id,
            is_array=row.parent_is_array,
            terms=Terms(row.terms),
            settled=row.settled,
            state=_state(row),
        )
        for row in stored.parents_of(tx, child_id, SHOWN)
    ]


def _state(row: Row) -> str | None:
    if row.parent_is_array:
        return None if row.finished is None else "ended" if row.finished else "unfinished"
    return None if row.state is None else JobState(row.state).word


def waiting_cause(tx: Tx, child_id: UUID) -> Cause:
    """Why a job that depends on others waits, with the parents that go on."""
    parents = [parent for parent in parents_in(tx, child_id) if parent.settled is None]
    named = ", ".join(
        f"{'array' if one.is_array else 'job'} {one.id} ({one.terms.word}, {one.state or 'forgotten'})"
        for one in parents[:NAMED]
    )
    more = f" and {len(parents) - NAMED} more" if len(parents) > NAMED else ""
    message = f"The job waits for {named}{more}."
    if not parents:
        message = "All that the job depends on has ended; it is made ready with the scheduler's next tick."
    return Cause(
        Code.DEPENDENCY,
        message,
        {"waits_for": len(parents), "parents": [str(parent.id) for parent in parents[:NAMED]]},
    )
