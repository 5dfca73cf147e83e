"""Statements of the event feed. An event's place is (xid, id); below the oldest open transaction no place changes.

Days are given as values, so that PostgreSQL leaves other days' partitions out already when it plans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from uuid import UUID

from app.storage.database import Row, Tx

_COLUMNS = """e.xid::text::bigint AS xid, e.id, e.day, e.at, e.tenant_id, e.job_id, e.attempt, e.was, e.state, e.ready,
    e.reason, e.stop_cause, e.node_id"""


@dataclass(frozen=True)
class Bounds:
    """What a read may see: events below `settled`. `beyond` was never reached by any transaction of this server."""

    settled: int
    beyond: int


@dataclass(frozen=True)
class Wanted:
    """Which events: of one tenant or all, of one job, of jobs of one type."""

    tenant_id: UUID | None = None
    job_id: UUID | None = None
    type: str | None = None


def bounds(tx: Tx) -> Bounds:
    """The bounds as they are now; they never go back."""
    row = tx.row(
        """SELECT pg_snapshot_xmin(s)::text::bigint AS settled, pg_snapshot_xmax(s)::text::bigint AS beyond
        FROM pg_current_snapshot() s"""
    )
    assert row is not None
    return Bounds(row.settled, row.beyond)


def page(
    tx: Tx, wanted: Wanted, after: tuple[int, int], since: date, settled: int, limit: int, scan: int
) -> Sequence[Row]:
    """Up to `limit` events behind place `after` and below `settled`, in order, with their job's type and contract.

    At most `scan` events are looked at; each row tells the last of them (`last_xid`, `last_id`, `last_day`) and how
    many they were (`scanned`). Where none of them is wanted one row without an id tells it; no row: there are none.
    """
    where = ["(e.xid, e.id) > (%(xid)s::xid8, %(id)s)", "e.xid < %(settled)s::xid8", "e.day >= %(since)s"]
    if wanted.job_id is not None:
        where.append("e.job_id = %(job)s")
    if wanted.tenant_id is not None:
        where.append("e.tenant_id = %(tenant)s")
    return tx.rows(
        f"""WITH scanned AS MATERIALIZED (
            SELECT {_COLUMNS} FROM event e WHERE {" AND ".join(where)} ORDER BY e.xid, e.id LIMIT %(scan)s
        ), told AS (
            SELECT s.*, j.type, j.contract FROM scanned s LEFT JOIN job j ON j.id = s.job_id
            WHERE %(type)s::text IS NULL OR j.type = %(type)s ORDER BY s.xid, s.id LIMIT %(limit)s
        ), last AS (
            SELECT xid AS last_xid, id AS last_id, day AS last_day, (SELECT count(*) FROM scanned) AS scanned
            FROM scanned ORDER BY xid DESC, id DESC LIMIT 1
        ) SELECT told.*, last.* FROM last LEFT JOIN told ON true ORDER BY told.xid, told.id""",
        {
            "xid": str(after[0]),
            "id": after[1],
            "since": since,
            "settled": str(settled),
            "job": wanted.job_id,
            "tenant": wanted.tenant_id,
            "type": wanted.type,
            "limit": limit,
            "scan": scan,
        },
    )


def head(tx: Tx, settled: int, since: date | None = None) -> Row | None:
    """The last place (xid, id, day) of all tenants below `settled`."""
    return tx.row(
        """SELECT xid::text::bigint AS xid, id, day FROM event
        WHERE xid < %(settled)s::xid8 AND day >= %(since)s ORDER BY event.xid DESC, id DESC LIMIT 1""",
        {"settled": str(settled), "since": since or date.min},
    )


def floor(tx: Tx) -> tuple[int, int]:
    """The last place that retention took away; (0, 0) when it took none."""
    row = tx.row("SELECT xid::text::bigint AS xid, event_id FROM event_floor")
    return (0, 0) if row is None else (row.xid, row.event_id)


def raise_floor(tx: Tx, table: str, older_than_days: int = 0) -> None:
    """Keeps the last place in `table`, a partition that is about to lose what is older than so many days."""
    tx.run(
        f"""INSERT INTO event_floor AS f (xid, event_id)
            SELECT xid, id FROM "{table}" WHERE day < CURRENT_DATE - %(days)s::int
            ORDER BY xid DESC, id DESC LIMIT 1
        ON CONFLICT (id) DO UPDATE SET xid = EXCLUDED.xid, event_id = EXCLUDED.event_id
            WHERE (f.xid, f.event_id) < (EXCLUDED.xid, EXCLUDED.event_id)""",
        {"days": older_than_days},
    )


def held_s(tx: Tx, settled: int, tenant_id: UUID | None = None) -> float:
    """Seconds since the first event that is there but cannot be told yet; 0 when there is none."""
    tenant = "" if tenant_id is None else "tenant_id = %(tenant)s AND"
    age = tx.value(
        f"""SELECT extract(epoch FROM clock_timestamp() - at)::float FROM event
        WHERE {tenant} xid >= %(settled)s::xid8 ORDER BY xid, id LIMIT 1""",
        {"settled": str(settled), "tenant": tenant_id},
    )
    return max(0.0, float(age or 0.0))


def oldest_writer(tx: Tx) -> Row | None:
    """The session whose open transaction is the oldest that wrote something, as far as this login may see it."""
    return tx.row(
        """SELECT pid, usename, application_name, state, datname, xact_start,
            extract(epoch FROM clock_timestamp() - xact_start)::float AS open_s
        FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY age(backend_xid) DESC LIMIT 1"""
    )


def job_page(tx: Tx, job_id: UUID, after: int, since: date, limit: int) -> Sequence[Row]:
    """Events of one job behind id `after`. A job's ids follow its commits, as its row is locked for each change."""
    return tx.rows(
        f"""SELECT {_COLUMNS}, j.type, j.contract FROM event e JOIN job j ON j.id = e.job_id
        WHERE e.job_id = %(job)s AND e.id > %(after)s AND e.day >= %(since)s ORDER BY e.id LIMIT %(limit)s""",
        {"job": job_id, "after": after, "since": since, "limit": limit},
    )


def job_last(tx: Tx, job_id: UUID, since: date, limit: int) -> Sequence[Row]:
    """The last events of one job, the newest first."""
    return tx.rows(
        f"""SELECT {_COLUMNS}, j.type, j.contract FROM event e JOIN job j ON j.id = e.job_id
        WHERE e.job_id = %(job)s AND e.day >= %(since)s ORDER BY e.id DESC LIMIT %(limit)s""",
        {"job": job_id, "since": since, "limit": limit},
    )
