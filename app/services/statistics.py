"""How the fabric has done lately: submitted, completed, failed, latencies, throughput; all from the event feed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from app.domain.histogram import percentile
from app.domain.priority import PriorityClass
from app.services.events import Cursor, parse_cursor
from app.storage import events as stored_events
from app.storage import statistics as stored
from app.storage.database import Database, Row, Tx
from app.storage.statistics import CANCELLED, COMPLETED, DISPATCHED, FAILED, SUBMITTED

DAY_S, HOUR_S = 86_400.0, 3600.0
KEPT_S = 2 * DAY_S
BATCH = 20_000


@dataclass(frozen=True)
class Totals:
    """Numbers of one window and of some classes. Seconds are None when there was nothing to measure."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    dispatch_p50_s: float | None = None
    dispatch_p99_s: float | None = None
    dispatch_mean_s: float | None = None
    run_p50_s: float | None = None
    run_p99_s: float | None = None
    run_mean_s: float | None = None

    @property
    def processed(self) -> int:
        """Jobs that ended, after they had begun or by failing before."""
        return self.completed + self.failed + self.cancelled

    @property
    def success_rate(self) -> float:
        """Completed among completed and failed; 0 when there are none."""
        ended = self.completed + self.failed
        return self.completed / ended if ended else 0.0


@dataclass(frozen=True)
class Lately:
    """The last day, the last hour in all and by class, and the most jobs that ended in one second of the last hour."""

    day: Totals
    hour: Totals
    hour_by_class: Mapping[PriorityClass, Totals]
    peak_per_second: int


def lately(db: Database) -> Lately:
    """Everything above. Up to a few seconds old, and older when no scheduler runs."""
    with db.transaction("read") as tx:
        day, hour = stored.sums(tx, DAY_S), stored.sums(tx, HOUR_S)
        peak = stored.peak_rate(tx, HOUR_S)
    by_class = {of: _totals([row for row in hour if row[0] == of]) for of in PriorityClass}
    return Lately(_totals(day), _totals(hour), by_class, peak)


def expected_wait_s(db: Database, priority_class: PriorityClass, position: int) -> float:
    """How long a job at this place of its queue waits if jobs go on to start as in the last hour; 0 when none did."""
    if position == 0:
        return 0.0
    with db.transaction("read") as tx:
        started = stored.starts(tx, int(priority_class), HOUR_S)
    return position * HOUR_S / started if started else 0.0


def _totals(rows: Sequence[Row]) -> Totals:
    n: Counter[int] = Counter()
    total_s: Counter[int] = Counter()
    waits: Counter[int] = Counter()
    runs: Counter[int] = Counter()
    for row in rows:
        n[row.kind] += row.n
        total_s[row.kind] += row.total_s
        if row.kind == DISPATCHED:
            waits[row.bucket] += row.n
        elif row.kind in {COMPLETED, FAILED, CANCELLED}:
            runs[row.bucket] += row.n
    ended = n[COMPLETED] + n[FAILED] + n[CANCELLED]
    ran_s = total_s[COMPLETED] + total_s[FAILED] + total_s[CANCELLED]
    return Totals(
        submitted=n[SUBMITTED],
        completed=n[COMPLETED],
        failed=n[FAILED],
        cancelled=n[CANCELLED],
        dispatch_p50_s=percentile(waits, 0.5),
        dispatch_p99_s=percentile(waits, 0.99),
        dispatch_mean_s=total_s[DISPATCHED] / n[DISPATCHED] if n[DISPATCHED] else None,
        run_p50_s=percentile(runs, 0.5),
        run_p99_s=percentile(runs, 0.99),
        run_mean_s=ran_s / ended if ended else None,
    )


def add_events(tx: Tx, before: Mapping[str, object]) -> dict[str, object]:
    """Adds the events since the place that the last call noted (`before`); what to note now.

    The first call begins at the present. Call under the task's lock; place and sums become durable together.
    """
    settled = stored_events.bounds(tx).settled
    noted = before.get("place")
    if not isinstance(noted, str):
        head = stored_events.head(tx, settled)
        place = Cursor() if head is None else Cursor(head.xid, head.id, head.day)
        return {"place": str(place), "events": 0}
    place = parse_cursor(noted)
    row = stored.add_events(tx, (place.xid, place.id), place.since, settled, BATCH)
    if row is None:
        return {"place": noted, "events": 0}
    return {"place": str(Cursor(row.xid, row.id, row.day)), "events": row.n}


def drop_old(tx: Tx) -> None:
    """Removes what no window reaches any more."""
    stored.drop_old(tx, KEPT_S)
