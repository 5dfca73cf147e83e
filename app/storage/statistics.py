"""Statistics of jobs by minute, summed up from the event feed: each event counts once, whatever happens in between."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from app.domain.histogram import GROWTH, LEAST_S
from app.storage.database import Row, Tx

SUBMITTED, DISPATCHED, COMPLETED, FAILED, CANCELLED = range(5)
"""Kinds. Dispatched: from submit to the first start; the last three: from start to end, cancelled when it had begun."""


def add_events(tx: Tx, after: tuple[int, int], since: date, settled: int, limit: int) -> Row | None:
    """Adds up to `limit` events behind place `after` and below `settled`: the last place (xid, id, day) and how many.

    None when there is nothing to add. Call under the task's lock, in the transaction that keeps the place.
    """
    return tx.row(
        """WITH page AS MATERIALIZED (
            SELECT xid, id, day, at, job_id, attempt, was, state FROM event e
            WHERE (e.xid, e.id) > (%(xid)s::xid8, %(id)s) AND e.xid < %(settled)s::xid8 AND e.day >= %(since)s
            ORDER BY e.xid, e.id LIMIT %(limit)s
        ), told AS (
            SELECT p.*, j.class, j.created_at, j.started_at, j.finished_at FROM page p JOIN job j ON j.id = p.job_id
        ), fact AS (
            SELECT created_at AS at, class, 0 AS kind, 0::float AS seconds FROM told WHERE was IS NULL
            UNION ALL
            SELECT started_at, class, 1, extract(epoch FROM started_at - created_at)::float FROM told
                WHERE attempt = 1 AND started_at IS NOT NULL AND (state = 2 OR (state > 3 AND was = 1))
            UNION ALL
            SELECT finished_at, class, state - 2, extract(epoch FROM finished_at - started_at)::float FROM told
                WHERE state > 3 AND (started_at IS NOT NULL OR state = 5)
        ), sorted AS (
            SELECT date_trunc('minute', at) AS minute, class, kind, count(*) AS n,
                CASE WHEN COALESCE(seconds, 0) <= %(least)s THEN 0
                    ELSE ceil(ln(seconds / %(least)s) / ln(%(growth)s)) END::smallint AS bucket,
                sum(GREATEST(COALESCE(seconds, 0), 0)) AS total_s
            FROM fact GROUP BY 1, 2, 3, 5
        ), added AS (
            INSERT INTO job_statistic AS s (minute, class, kind, bucket, n, total_s)
            SELECT minute, class, kind, bucket, n, total_s FROM sorted
            ON CONFLICT (minute, class, kind, bucket) DO UPDATE SET n = s.n + EXCLUDED.n,
                total_s = s.total_s + EXCLUDED.total_s
        ), rated AS (
            INSERT INTO job_rate AS r (second, n)
            SELECT date_trunc('second', at), count(*) FROM fact WHERE kind > 1 GROUP BY 1
            ON CONFLICT (second) DO UPDATE SET n = r.n + EXCLUDED.n
        ) SELECT xid::text::bigint AS xid, id, day, (SELECT count(*) FROM page)::int AS n FROM page
        ORDER BY page.xid DESC, id DESC LIMIT 1""",
        {
            "xid": str(after[0]),
            "id": after[1],
            "since": since,
            "settled": str(settled),
            "limit": limit,
            "least": LEAST_S,
            "growth": GROWTH,
        },
    )


def sums(tx: Tx, seconds: float) -> Sequence[Row]:
    """Rows (class, kind, bucket, n, total_s) of the last `seconds`, to the minute."""
    return tx.rows(
        """SELECT class, kind, bucket, sum(n)::bigint AS n, sum(total_s) AS total_s FROM job_statistic
        WHERE minute >= date_trunc('minute', now() - make_interval(secs => %(s)s)) GROUP BY 1, 2, 3""",
        {"s": seconds},
    )


def starts(tx: Tx, priority_class: int, seconds: float) -> int:
    """How many jobs of a class first started in the last `seconds`, to the minute."""
    return int(
        tx.value(
            """SELECT COALESCE(sum(n), 0) FROM job_statistic WHERE kind = 1 AND class = %(class)s
            AND minute >= date_trunc('minute', now() - make_interval(secs => %(s)s))""",
            {"class": priority_class, "s": seconds},
        )
    )


def peak_rate(tx: Tx, seconds: float) -> int:
    """The most jobs that ended within one second of the last `seconds`."""
    return int(
        tx.value(
            "SELECT COALESCE(max(n), 0) FROM job_rate WHERE second > now() - make_interval(secs => %(s)s)",
            {"s": seconds},
        )
    )


def drop_old(tx: Tx, seconds: float) -> None:
    """Removes what is older."""
    for table, column in (("job_statistic", "minute"), ("job_rate", "second")):
        tx.run(f"DELETE FROM {table} WHERE {column} < now() - make_interval(secs => %(s)s)", {"s": seconds})
