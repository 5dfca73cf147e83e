"""What the watch asks: has anything changed for these jobs, and whose events are new. Cheap, whatever the backlog."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx


def look_at_jobs(tx: Tx, job_ids: Sequence[UUID]) -> Sequence[Row]:
    """Everything by which a reader of these jobs could tell now from before; a job that is gone has no row.

    Output that comes with an attempt's end needs no look of its own: the job leaves its attempt in that very commit.
    """
    return tx.rows(
        """SELECT j.id, j.state, j.attempt, j.attempt_id, j.stop_cause, j.ready, j.reason, (
            SELECT sum(e.stored) FROM (
                SELECT id, log_day FROM attempt WHERE id = j.attempt_id
                UNION ALL SELECT id, log_day FROM attempt WHERE leader_id = j.attempt_id AND member > 0) a
            CROSS JOIN LATERAL (SELECT c.position + c.length AS stored FROM log_chunk c
                WHERE c.log_day = a.log_day AND c.attempt_id = a.id AND c.member = 0
                ORDER BY c.position DESC LIMIT 1) e)::bigint AS stored
        FROM job j WHERE j.id = ANY(%(ids)s)""",
        {"ids": list(job_ids)},
    )


# One equality per day, not a range: only so does the key (day, id) lead straight to the newest rows.
def look_at_events(tx: Tx, floor: int, limit: int) -> Sequence[Row]:
    """The newest events above `floor`: (id, tenant_id, settled, quiet).

    Settled: no older transaction can still add one. Quiet: nobody is writing, so no lower id can still come at all.
    """
    return tx.rows(
        """SELECT id, tenant_id, xid < pg_snapshot_xmin(pg_current_snapshot()) AS settled,
            pg_snapshot_xmin(pg_current_snapshot()) = pg_snapshot_xmax(pg_current_snapshot()) AS quiet FROM (
            (SELECT id, tenant_id, xid FROM event WHERE day = CURRENT_DATE AND id > %(floor)s
                ORDER BY id DESC LIMIT %(limit)s)
            UNION ALL
            (SELECT id, tenant_id, xid FROM event WHERE day = CURRENT_DATE - 1 AND id > %(floor)s
                ORDER BY id DESC LIMIT %(limit)s)) recent ORDER BY id DESC LIMIT %(limit)s""",
        {"floor": floor, "limit": limit},
    )


def last_event(tx: Tx) -> int:
    """The highest id of the last two days' events, 0 when there is none."""
    newest = tx.value(
        """SELECT GREATEST(
            (SELECT id FROM event WHERE day = CURRENT_DATE ORDER BY id DESC LIMIT 1),
            (SELECT id FROM event WHERE day = CURRENT_DATE - 1 ORDER BY id DESC LIMIT 1))"""
    )
    return int(newest or 0)
