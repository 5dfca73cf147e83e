"""Arrays: accepted in one request, turned into jobs a bounded window ahead, cancelled, run again, told of.

An array's row says which indices are to become jobs yet, so that none is lost and none is made twice. How many jobs may
start at a time is exact: an end passes its turn on in its own transaction, and only who holds the array's row gives
more turns.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.array import ArrayAsked, ArrayCounts, multirange, status_of
from app.domain.errors import Invalid, NotFound, StateConflict, Unavailable
from app.domain.explain import Cause, Code
from app.domain.identity import uuid7
from app.domain.job import JobRequest
from app.domain.priority import PriorityClass
from app.domain.states import JobState, StopCause
from app.services.parents import parents_in
from app.services.passes import Pass, run_task
from app.services.views import JobView, ParentView, view_of
from app.storage import arrays as stored
from app.storage import gangs, jobs
from app.storage.database import Database, Row, Tx
from app.storage.keys import revive_keys
from config.settings import Settings

log = logging.getLogger(__name__)

MADE_AT_A_TIME = 1000
ARRAYS_AT_A_TIME = 500
MOST_CARRIED_BYTES = 4 * 2**30
"""What the programs and environments of all jobs of an array may come to: each job carries its own."""
NEWEST = 2**62


@dataclass(frozen=True)
class ArrayView:
    """An array as it is now. `status` is one word for all its indices; `reason` is why none of it starts yet."""

    id: UUID
    tenant_id: UUID
    contract: str
    type: str
    priority_class: PriorityClass
    max_parallel: int | None
    counts: ArrayCounts
    status: str
    reason: str | None
    message: str
    stop_by: str | None
    stop_reason: str | None
    created_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True)
class Cancelled:
    """What a cancel did: so many indices ended at once, so many are being stopped; the nodes to wake."""

    array: ArrayView
    cancelled: int
    stopping: int
    nodes: Sequence[str]


def make_array(
    tx: Tx,
    settings: Settings,
    tenant_id: UUID,
    request: JobRequest,
    asked: ArrayAsked,
    template: dict[str, Any],
    waits: bool,
) -> ArrayView:
    """Writes an array with its first jobs in the caller's transaction. `template` is a row of insert_jobs.

    Raises Invalid for more indices, or more bytes in all, than may be.
    """
    _check(settings, request, asked)
    array_id = uuid7(time.time_ns() // 1_000_000, 0, secrets.randbits(62))
    stored.make(
        tx,
        {
            "id": array_id,
            "tenant_id": tenant_id,
            "key_id": template["key_id"],
            "contract": request.contract,
            "type": request.type,
            "class": int(request.priority_class),
            "size": asked.count,
            "max_parallel": asked.max_parallel,
            "template": template,
            "waits": waits,
        },
    )
    if not waits:
        _advance(tx, settings, array_id)
    return _view_in(tx, array_id)


def _check(settings: Settings, request: JobRequest, asked: ArrayAsked) -> None:
    if asked.count > settings.array_max:
        message = f"array.count: must be from 1 to {settings.array_max}, not {asked.count}"
        raise Invalid(message, field="array.count")
    words = [request.script or "", *request.command, *request.arguments]
    words += [part for pair in request.environment.items() for part in pair]
    size = sum(len(word) for word in words) * asked.count
    if size > MOST_CARRIED_BYTES:
        message = (
            f"array.count: the script, arguments and environment of {asked.count} jobs come to {size} bytes; at most "
            f"{MOST_CARRIED_BYTES} are allowed: have the program fetched by its URL"
        )
        raise Invalid(message, field="array.count")


def get_array(db: Database, tenant_id: UUID, array_id: UUID) -> ArrayView:
    """One array with exact counts. Raises NotFound, also for another tenant's."""
    with db.transaction("read") as tx:
        return _own(tx, tenant_id, array_id)


def array_detail(db: Database, tenant_id: UUID, array_id: UUID) -> tuple[ArrayView, list[ParentView]]:
    """One array, and what it depends on. Raises NotFound."""
    with db.transaction("read") as tx:
        return _own(tx, tenant_id, array_id), parents_in(tx, array_id)


def list_arrays(db: Database, tenant_id: UUID, limit: int, offset: int) -> list[ArrayView]:
    """A tenant's arrays, newest first."""
    with db.transaction("read") as tx:
        return [_view(row) for row in stored.of_tenant(tx, tenant_id, limit, offset)]


def list_array_jobs(
    db: Database, tenant_id: UUID, array_id: UUID, states: Sequence[JobState] | None, limit: int, offset: int
) -> tuple[list[JobView], int]:
    """The latest job of each index that has one, by index, and how many there are in these states. Raises NotFound."""
    with db.transaction("read") as tx:
        row = _own_row(tx, tenant_id, array_id)
        wanted = None if states is None else sorted(int(state) for state in states)
        rows = stored.list_jobs(tx, array_id, wanted, limit, offset)
    number = {
        JobState.PENDING: row.pending, JobState.RUNNING: row.active, JobState.COMPLETED: row.completed,
        JobState.FAILED: row.failed - row.again, JobState.CANCELLED: row.cancelled,
    }  # fmt: skip
    asked = number if states is None else states
    return [view_of(one) for one in rows], sum(number.get(state, 0) for state in set(asked))


def cancel(
    tx: Tx,
    settings: Settings,
    tenant_id: UUID,
    array_id: UUID,
    ranges: Sequence[tuple[int, int]] | None,
    by: str,
    reason: str | None = None,
    running: bool = True,
) -> Cancelled:
    """Ends indices (None: all) in the caller's transaction: what has not started is cancelled, what runs is stopped.

    Without `running`, jobs that have started go on. Asking again changes nothing. The nodes are to be woken after the
    commit. Raises NotFound, and StateConflict when the array has ended.
    """
    view, wanted = _lock_own(tx, tenant_id, array_id, ranges)
    if view.finished_at is not None:
        raise StateConflict(f"The array is {view.status} already.", array_id=str(array_id), status=view.status)
    skipped = stored.skip(tx, array_id, wanted, by, reason)
    rows = stored.lock_open_jobs(tx, array_id, wanted)
    pending = [row.id for row in rows if row.state == JobState.PENDING]
    ended = jobs.cancel_pending(tx, pending, by, reason) if pending else set()
    active = [row for row in rows if row.state != JobState.PENDING and running]
    if active:
        stored.mark_stopping(tx, [row.id for row in active], int(StopCause.CANCEL), by, reason)
    _advance(tx, settings, array_id)
    nodes = gangs.nodes_of(tx, [row.attempt_id for row in active]) if active else []
    return Cancelled(_view_in(tx, array_id), skipped + len(ended), len(active), nodes)


def retry(
    tx: Tx, settings: Settings, tenant_id: UUID, array_id: UUID, ranges: Sequence[tuple[int, int]] | None
) -> tuple[ArrayView, int]:
    """Runs failed indices (of `ranges`, or all) again in the caller's transaction; how many.

    Each becomes a new job, which takes the place of the one that failed; an array that had ended goes on. Raises
    NotFound, and StateConflict when there is none that failed.
    """
    view, wanted = _lock_own(tx, tenant_id, array_id, ranges)
    again = stored.run_again(tx, array_id, wanted)
    if not again:
        which = "" if ranges is None else " among these"
        message = f"No job of the array has failed{which}; only failed ones run again."
        raise StateConflict(message, array_id=str(array_id), status=view.status)
    _advance(tx, settings, array_id)
    return _view_in(tx, array_id), again


def let_go(tx: Tx, settings: Settings, array_id: UUID) -> frozenset[PriorityClass]:
    """An array that waited for others makes its first jobs; the classes in which jobs became ready."""
    tx.run("UPDATE job_array SET waits = false WHERE id = %(id)s", {"id": array_id})
    return _advance(tx, settings, array_id)


def cancel_waiting(tx: Tx, settings: Settings, array_id: UUID, message: str) -> None:
    """Ends an array that can never start, with that message."""
    row = stored.lock(tx, array_id)
    if row is None or not row.waits:
        return
    stored.skip(tx, array_id, multirange([(0, row.size)]), "dependency", message)
    tx.run(
        "UPDATE job_array SET waits = false, message = %(message)s WHERE id = %(id)s",
        {"id": array_id, "message": message},
    )
    _advance(tx, settings, array_id)


def advance(db: Database, settings: Settings) -> Pass:
    """Looks at arrays in which something changed: counts it, makes the next jobs, gives turns, tells their ends."""
    found: list[UUID] = []

    def work(tx: Tx, done: Pass) -> None:
        found[:] = stored.changed(tx, ARRAYS_AT_A_TIME)
        done.detail["arrays"] = len(found)

    done = run_task(db, "arrays", work)
    for array_id in found:
        try:
            done.ready |= _fill(db, settings, array_id)
        except Unavailable:
            raise
        except Exception as exc:
            # One array that cannot be advanced holds up no other.
            log.exception("array %s cannot be advanced", array_id)
            done.detail.setdefault("alerts", []).append(f"array {array_id} cannot be advanced: {exc}")
    return done


def turn_cause(tx: Tx, array_id: UUID) -> Cause:
    """Why a job of an array waits that may not start before others of it have ended."""
    row = stored.now(tx, array_id)
    most = 0 if row is None else row.max_parallel
    message = f"The job waits for its turn: of array {array_id} at most {most} may start or run at a time."
    numbers = {"array": str(array_id), "max_parallel": most, "running": 0 if row is None else row.active}
    return Cause(Code.ARRAY, message, numbers)


def forget(db: Database, settings: Settings, limit: int = 1000) -> Pass:
    """Drops arrays that ended before the retention of jobs and have none left, in bounded steps."""

    def work(tx: Tx, done: Pass) -> None:
        done.detail["forgotten"] = stored.forget(tx, settings.retain_jobs_days, limit)

    return run_task(db, "forget_arrays", work)


def _fill(db: Database, settings: Settings, array_id: UUID) -> frozenset[PriorityClass]:
    ready: frozenset[PriorityClass] = frozenset()
    for _ in range(max(1, settings.array_window // MADE_AT_A_TIME)):
        with db.transaction("arrays") as tx:
            row = stored.lock(tx, array_id, wait=False)
            if row is None:
                break
            ready |= _advance(tx, settings, array_id)
            if not _room(settings, stored.now(tx, array_id)):
                break
    return ready


def _room(settings: Settings, row: Row | None) -> int:
    """How many more of the array's indices may become jobs now."""
    return 0 if row is None or row.waits else max(0, min(row.unmade, settings.array_window - row.pending))


def _advance(tx: Tx, settings: Settings, array_id: UUID) -> frozenset[PriorityClass]:
    """One step of a locked array; the classes in which jobs became ready."""
    row = stored.fold(tx, array_id)
    if row.waits and row.unmade:
        return frozenset()
    room = min(_room(settings, row), MADE_AT_A_TIME)
    ready = 0
    if room:
        revive_keys(tx, {row.key_id: NEWEST})
        now_ms = time.time_ns() // 1_000_000
        ids = [uuid7(now_ms, place, secrets.randbits(62)) for place in range(room)]
        ready += stored.expand(tx, array_id, ids, again=row.again > 0)
        if room < row.unmade:
            stored.touch(tx, [array_id])
    if row.max_parallel is not None:
        ready = stored.give_turns(tx, array_id, row.max_parallel)
    if not row.unmade and not row.pending and not row.active:
        stored.finish(tx, array_id)
    return frozenset({PriorityClass(row._mapping["class"])}) if ready else frozenset()


def _lock_own(
    tx: Tx, tenant_id: UUID, array_id: UUID, ranges: Sequence[tuple[int, int]] | None
) -> tuple[ArrayView, str]:
    row = stored.lock(tx, array_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Array not found", array_id=str(array_id))
    stored.fold(tx, array_id)
    return _view_in(tx, array_id), multirange([(0, row.size)] if ranges is None else ranges)


def _own_row(tx: Tx, tenant_id: UUID, array_id: UUID) -> Row:
    row = stored.now(tx, array_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Array not found", array_id=str(array_id))
    return row


def _own(tx: Tx, tenant_id: UUID, array_id: UUID) -> ArrayView:
    return _view(_own_row(tx, tenant_id, array_id))


def _view_in(tx: Tx, array_id: UUID) -> ArrayView:
    return _view(stored.now(tx, array_id))


def _view(row: Row | None) -> ArrayView:
    assert row is not None
    counts = ArrayCounts(
        pending=row.pending + row.unmade,
        running=row.active,
        completed=row.completed,
        failed=row.failed - row.again,
        cancelled=row.cancelled + row.skipped,
        unmade=row.unmade,
    )
    return ArrayView(
        id=row.id,
        tenant_id=row.tenant_id,
        contract=row.contract,
        type=row.type,
        priority_class=PriorityClass(row._mapping["class"]),
        max_parallel=row.max_parallel,
        counts=counts,
        status=status_of(counts, row.finished_at is not None),
        reason="dependency" if row.waits else None,
        message=row.message,
        stop_by=row.stop_by,
        stop_reason=row.stop_reason,
        created_at=row.created_at,
        finished_at=row.finished_at,
    )
