"""Dependencies: what a job waits for is held while it is submitted, and let go when its parents have ended.

The end of a parent writes one row in its own transaction, whatever waits for it; the rest is done here, in chunks. A
job whose dependency can never be satisfied is cancelled: an end like any other, so that it goes on down the line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from app.domain.dependency import After, Terms, never_message
from app.domain.errors import FieldProblem, Invalid
from app.domain.job import JobRequest
from app.domain.priority import PriorityClass
from app.services import arrays
from app.services.passes import Pass, run_task
from app.storage import dependencies as stored
from app.storage.database import Database, Row, Tx
from app.storage.keys import revive_keys
from config.settings import Settings

PARENTS_AT_A_TIME = 200
EDGES_AT_A_TIME = 1000
ROUNDS = 50
"""Chunks that one pass settles; what is left is the next pass's."""


class Held:
    """The parents of jobs that are being submitted: none of them ends before that is committed."""

    def __init__(self, rows: Sequence[tuple[Row, bool]]) -> None:
        self._rows = {row.id: (row, is_array) for row, is_array in rows}

    def waits(self, after: Sequence[After]) -> bool:
        """Whether something of `after` is not satisfied yet, or never will be."""
        return any(self._settled(one) is not True for one in after)

    def link(self, tx: Tx, children: Mapping[UUID, Sequence[After]], are_arrays: bool = False) -> None:
        """Writes what these children, which were just submitted, depend on."""
        told: dict[UUID, tuple[UUID, bool, bool]] = {}
        edges = []
        for child, after in children.items():
            for one in after:
                row, is_array = self._rows[one.parent]
                settled = self._settled(one)
                if settled is False:
                    # Left to the scheduler, which cancels the child as it would have a moment later.
                    settled, told[row.id] = None, (row.id, is_array, row.completed)
                edges.append((child, are_arrays, row.id, is_array, int(one.terms), settled))
        if edges:
            stored.link(tx, edges)
        if told:
            stored.tell(tx, list(told.values()))

    def _settled(self, one: After) -> bool | None:
        row, _is_array = self._rows[one.parent]
        return one.terms.satisfied(row.completed) if row.ended else None


def hold_parents(tx: Tx, tenant_id: UUID, requests: Sequence[JobRequest]) -> Held | None:
    """Holds all that `requests` depend on, before anything else is locked; None when they depend on nothing.

    Raises Invalid for what is no job and no array of this tenant: that another tenant's exists is not told.
    """
    wanted = sorted({one.parent for request in requests for one in request.after})
    if not wanted:
        return None
    rows: list[tuple[Row, bool]] = [(row, True) for row in stored.lock_arrays(tx, wanted, tenant_id)]
    rest = sorted(set(wanted) - {row.id for row, _is_array in rows})
    rows += [(row, False) for row in stored.lock_jobs(tx, rest, tenant_id)] if rest else []
    known = {row.id for row, _is_array in rows}
    many = len(requests) > 1
    problems = [
        FieldProblem(f"depends_on[{place}].job", f"there is no job and no array {one.parent}", index if many else None)
        for index, request in enumerate(requests)
        for place, one in enumerate(request.after)
        if one.parent not in known
    ]
    if problems:
        raise Invalid(f"{problems[0].field}: {problems[0].message}", problems[:100])
    return Held(rows)


def release(db: Database, settings: Settings) -> Pass:
    """Lets go, or cancels, what waited for parents that have ended: in chunks, each a transaction of its own."""
    total = Pass("release", detail={"released": 0, "cancelled": 0})
    for _ in range(ROUNDS):
        more: list[bool] = []

        def work(tx: Tx, it: Pass, more: list[bool] = more) -> None:
            more.append(_release(tx, settings, it))

        done = run_task(db, "release", work)
        total.ran |= done.ran
        total.ready |= done.ready
        for name in ("released", "cancelled"):
            total.detail[name] += done.detail.get(name, 0)
        if not any(more):
            break
    return total


def _release(tx: Tx, settings: Settings, done: Pass) -> bool:
    """One chunk; whether there may be more."""
    done.detail |= {"released": 0, "cancelled": 0}
    ended = stored.ended_parents(tx, PARENTS_AT_A_TIME)
    if not ended:
        return False
    completed = {row.parent_id: bool(row.completed) for row in ended}
    of_array = {row.parent_id for row in ended if row.is_array}
    if of_array:
        now = {row.id: row for row in stored.lock_arrays(tx, sorted(of_array))}
        # An array whose failed jobs run again has not ended after all: its next end is told again.
        again = {parent for parent in of_array if parent in now and not now[parent].ended}
        stored.drop_ended(tx, [row.id for row in ended if row.parent_id in again])
        completed = {parent: value for parent, value in completed.items() if parent not in again}
        completed |= {parent: bool(row.completed) for parent, row in now.items() if parent in completed}
    edges = stored.open_edges(tx, sorted(completed), EDGES_AT_A_TIME)
    _settle(tx, settings, edges, completed, of_array, done)
    stored.forget_ended(tx, [row.id for row in ended])
    return len(edges) > 0 or len(ended) == PARENTS_AT_A_TIME


def _settle(
    tx: Tx, settings: Settings, edges: Sequence[Row], completed: Mapping[UUID, bool], of_array: set[UUID], done: Pass
) -> None:
    children = {edge.child_id: edge.child_is_array for edge in edges}
    child_arrays = sorted(child for child, is_array in children.items() if is_array)
    child_jobs = sorted(child for child, is_array in children.items() if not is_array)
    stored.lock_children(tx, child_jobs, child_arrays)
    verdicts = [(edge, Terms(edge.terms).satisfied(completed[edge.parent_id])) for edge in edges]
    stored.settle(tx, [(edge.child_id, edge.parent_id, verdict) for edge, verdict in verdicts])
    never = {
        edge.child_id: never_message(Terms(edge.terms), edge.parent_id, edge.parent_id in of_array)
        for edge, verdict in verdicts
        if not verdict
    }
    free = stored.free_children(tx, [child for child in children if child not in never])
    for array_id in child_arrays:
        if array_id in never:
            arrays.cancel_waiting(tx, settings, array_id, never[array_id])
        elif array_id in free:
            done.ready |= arrays.let_go(tx, settings, array_id)
    waiting = {row.id: row for row in stored.waiting_jobs(tx, child_jobs)}
    stored.cancel_jobs(tx, {child: message for child, message in never.items() if child in waiting})
    go = [waiting[child] for child in child_jobs if child in free and child in waiting]
    heads: dict[int, int] = {}
    for row in go:
        heads[row.key_id] = min(heads.get(row.key_id, row.queue_seq), row.queue_seq)
    revive_keys(tx, heads)
    stored.release_jobs(tx, [row.id for row in go])
    done.detail["released"] = len(free)
    done.detail["cancelled"] = len(never)
    done.ready |= frozenset(PriorityClass(row[3]) for row in go)
