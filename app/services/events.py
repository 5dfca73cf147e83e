"""What happened: every change of a job's state as a feed that misses none, and as the history of one job.

A place in the feed is told by the order in which changes became certain, not by the clock. A reader that goes on from
each answer's cursor gets every event once, those of one job in their order, however late a transaction commits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from app.domain.errors import FieldProblem, Invalid, NotFound
from app.domain.states import JobState, StopCause
from app.storage import events as stored
from app.storage import jobs
from app.storage.database import Database, Row, Tx
from app.storage.events import Bounds, Wanted

MOST = 1000
SCAN = 5000
"""Events looked at in one read for a filter that no index serves; the next read goes on behind them."""
HELD_ALERT_S = 60.0

_SLACK = timedelta(days=2)
"""ck_event_fresh: no event behind a place has a day that is more than this before the place's own."""
_CURSOR = re.compile(r"([0-9]{1,19})\.([0-9]{1,19})\.([0-9]{8})")
_MOST_ID = 2**63 - 1


@dataclass(frozen=True)
class Cursor:
    """A place in the feed; as text it is opaque to readers."""

    xid: int = 0
    id: int = 0
    day: date = date.min

    def __str__(self) -> str:
        return "0" if self.day == date.min else f"{self.xid}.{self.id}.{self.day:%Y%m%d}"

    @property
    def since(self) -> date:
        """No event behind this place has an earlier day."""
        return self.day if self.day - date.min < _SLACK else self.day - _SLACK


START = Cursor()


@dataclass(frozen=True)
class Event:
    """One change of a job. `was` is None for its first; type and contract are None when the job is gone."""

    cursor: Cursor
    at: datetime
    tenant_id: UUID
    job_id: UUID
    type: str | None
    contract: str | None
    was: JobState | None
    state: JobState
    ready: bool
    reason: str | None
    stop_cause: StopCause | None
    attempt: int
    node_id: str | None


@dataclass(frozen=True)
class Page:
    """Events in order, and where to go on. `more`: there is more already. `gap`: what was between the cursor and these
    is partly no longer kept. `held_s`: for so long the first event that may not be told yet has been waiting for an
    older transaction to end; 0 when there is none."""

    events: Sequence[Event]
    next: Cursor
    more: bool = False
    gap: bool = False
    held_s: float = 0.0


def parse_cursor(text: str, name: str = "after") -> Cursor:
    """The place that `text` names; `0` is the beginning. Raises Invalid."""
    match = _CURSOR.fullmatch(text)
    if text == "0":
        return START
    try:
        if match and int(match[1]) <= _MOST_ID and int(match[2]) <= _MOST_ID:
            return Cursor(int(match[1]), int(match[2]), datetime.strptime(match[3], "%Y%m%d").date())
    except ValueError:
        pass
    hint = "is no cursor; send one that an answer gave as `next`, 0 for the beginning, or now"
    raise Invalid(problems=[FieldProblem(name, f"{text[:60]!a} {hint}")])


def after(
    db: Database,
    tenant_id: UUID | None,
    cursor: Cursor,
    limit: int = 100,
    job_id: UUID | None = None,
    type: str | None = None,
) -> Page:
    """Up to `limit` (at most MOST) events behind `cursor`: of one tenant (None: of all), of one job, of one type.

    Costs the same whatever the history. With a type, a page may hold fewer events than there are and still say `more`.
    A cursor of another server, or of one that was set back to an earlier time, counts as the beginning, with a gap.
    """
    limit = max(1, min(limit, MOST))
    wanted = Wanted(tenant_id, job_id, type)
    with db.transaction("events") as tx:
        seen = stored.bounds(tx)
        foreign = cursor.xid >= seen.beyond
        place = START if foreign else cursor
        scan = limit + 1 if type is None else max(SCAN, limit + 1)
        rows = stored.page(tx, wanted, (place.xid, place.id), place.since, seen.settled, limit + 1, scan)
        return _page(tx, wanted, place, rows, limit, scan, seen, foreign)


def _page(
    tx: Tx, wanted: Wanted, place: Cursor, rows: Sequence[Row], limit: int, scan: int, seen: Bounds, foreign: bool
) -> Page:
    found = [_event(row) for row in rows[:limit] if row.id is not None]
    more = len(rows) > limit or (bool(rows) and rows[0].scanned >= scan)
    # Read last: what retention took away while this page was read must not be missed in silence.
    gap = foreign or (place != START and (place.xid, place.id) < stored.floor(tx))
    if len(rows) > limit:
        return Page(found, found[-1].cursor, more, gap)
    if more:
        return Page(found, Cursor(rows[0].last_xid, rows[0].last_id, rows[0].last_day), more, gap)
    held_s = stored.held_s(tx, seen.settled, wanted.tenant_id)
    # A quiet tenant's reader keeps up with the others, so that its cursor does not grow old.
    newest = _head(tx, seen, place.since)
    last = found[-1].cursor if found else place
    ahead = newest if (newest.xid, newest.id) > (last.xid, last.id) else last
    return Page(found, ahead, more, gap, held_s)


def now(db: Database) -> Cursor:
    """The place behind all events that can be told now."""
    with db.transaction("events") as tx:
        return _head(tx, stored.bounds(tx), None)


def _head(tx: Tx, seen: Bounds, since: date | None) -> Cursor:
    row = stored.head(tx, seen.settled, since)
    return START if row is None else Cursor(row.xid, row.id, row.day)


def of_job(db: Database, tenant_id: UUID, job_id: UUID, limit: int = 100) -> list[Event]:
    """The last `limit` events of one job, in order: why it waited, where it ran. Raises NotFound, also for another's.

    Events are kept for fewer days than jobs.
    """
    with db.transaction("read") as tx:
        since = _since(tx, tenant_id, job_id)
        return [_event(row) for row in reversed(stored.job_last(tx, job_id, since, limit))]


def of_job_after(db: Database, tenant_id: UUID, job_id: UUID, cursor: Cursor, limit: int = 100) -> Page:
    """Up to `limit` events of one job behind `cursor`. Nothing is held back here: a job's changes follow each other."""
    limit = max(1, min(limit, MOST))
    with db.transaction("read") as tx:
        since = max(_since(tx, tenant_id, job_id), cursor.since)
        found = [_event(row) for row in stored.job_page(tx, job_id, cursor.id, since, limit + 1)]
    more = len(found) > limit
    return Page(found[:limit], found[:limit][-1].cursor if found else cursor, more)


def held_alerts(tx: Tx) -> list[str]:
    """What to tell an operator when events have been held back for long, and by whom, as far as that can be seen."""
    held_s = stored.held_s(tx, stored.bounds(tx).settled)
    if held_s < HELD_ALERT_S:
        return []
    who = stored.oldest_writer(tx)
    by = "an open transaction"
    if who is not None:
        by = f"pid {who.pid} ({who.usename}, {who.application_name or who.datname}, {who.state}, {who.open_s:.0f} s)"
    return [f"events have been held back for {held_s:.0f} s by {by}; end it, or the feed waits with it"]


def _since(tx: Tx, tenant_id: UUID, job_id: UUID) -> date:
    row = jobs.job_view(tx, job_id)
    if row is None or row.tenant_id != tenant_id:
        raise NotFound("Job not found", job_id=str(job_id))
    day: date = row.created_at.astimezone(UTC).date()
    return day - _SLACK


def _event(row: Row) -> Event:
    return Event(
        cursor=Cursor(row.xid, row.id, row.day),
        at=row.at,
        tenant_id=row.tenant_id,
        job_id=row.job_id,
        type=row.type,
        contract=row.contract,
        was=None if row.was is None else JobState(row.was),
        state=JobState(row.state),
        ready=row.ready,
        reason=row.reason,
        stop_cause=None if row.stop_cause is None else StopCause(row.stop_cause),
        attempt=row.attempt,
        node_id=row.node_id,
    )
