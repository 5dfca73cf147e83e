"""What the beat tasks need besides: locks, last runs, partitions, retention, idempotency keys, health."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage import events
from app.storage.database import Json, Row, Tx


def try_task_lock(tx: Tx, name: str) -> bool:
    """Whether this transaction is the only one that runs task `name` now."""
    return bool(tx.value("SELECT pg_try_advisory_xact_lock(hashtextextended(%(n)s, 72))", {"n": f"task:{name}"}))


def may_idle(tx: Tx, at_most_s: float) -> None:
    """Lets this transaction wait between two statements for up to `at_most_s`; others are ended after half a minute.

    One whose client's host is gone ends within half a minute all the same: the server asks for it.
    """
    tx.rows(
        """SELECT set_config('idle_in_transaction_session_timeout', %(ms)s, true),
            set_config('tcp_keepalives_idle', '10', true), set_config('tcp_keepalives_interval', '5', true),
            set_config('tcp_keepalives_count', '3', true), set_config('tcp_user_timeout', '30000', true)""",
        {"ms": f"{round(at_most_s * 1000)}ms"},
    )


def note_run(tx: Tx, name: str, duration_s: float, detail: Mapping[str, Any]) -> None:
    """Keeps when a task last ran, how long it took, and what it did."""
    tx.run(
        """INSERT INTO task_run (name, last_run_at, duration_s, detail) VALUES (%(n)s, clock_timestamp(), %(d)s, %(x)s)
        ON CONFLICT (name) DO UPDATE SET last_run_at = EXCLUDED.last_run_at, duration_s = EXCLUDED.duration_s,
            detail = EXCLUDED.detail""",
        {"n": name, "d": duration_s, "x": Json(dict(detail))},
    )


def task_runs(tx: Tx) -> Sequence[Row]:
    """All last runs with their age in seconds."""
    return tx.rows(
        """SELECT name, last_run_at, duration_s, detail, extract(epoch FROM now() - last_run_at)::float AS age_s
        FROM task_run"""
    )


def last_detail(tx: Tx, name: str) -> dict[str, Any]:
    """What task `name` noted at its last run."""
    return dict(tx.value("SELECT detail FROM task_run WHERE name = %(n)s", {"n": name}) or {})


def since_run(tx: Tx, name: str) -> float | None:
    """Seconds since task `name` last ran, None when it never did."""
    age = tx.value(
        "SELECT extract(epoch FROM clock_timestamp() - last_run_at)::float FROM task_run WHERE name = %(n)s",
        {"n": name},
    )
    return None if age is None else float(age)


def days_of_live_logs(tx: Tx, retain_days: int, before: Mapping[str, str]) -> dict[str, str]:
    """The days (YYYYMMDD) older than `retain_days` of which logs are kept still, and when an attempt last needed each.

    An attempt's log is under the day of its claim, whenever it was written: its retention begins when the attempt is
    over. `before` is the last answer, by which a day is remembered for `retain_days` more.
    """
    rows = tx.rows(
        """SELECT d AS day, max(last) AS last FROM (
            SELECT to_char(a.log_day, 'YYYYMMDD') AS d, to_char(CURRENT_DATE, 'YYYYMMDD') AS last
            FROM allocation l JOIN attempt a ON a.id = l.attempt_id WHERE a.log_day < CURRENT_DATE - %(days)s::int
            UNION ALL SELECT key, value FROM jsonb_each_text(%(before)s::jsonb)) x
        WHERE last >= to_char(CURRENT_DATE - %(days)s::int, 'YYYYMMDD') GROUP BY 1""",
        {"days": retain_days, "before": Json(dict(before))},
    )
    return {row.day: row.last for row in rows}


def drop_partitions(tx: Tx, retain_days: int, kept_logs: Collection[str] = ()) -> list[str]:
    """Drops daily partitions older than `retain_days`, and such rows of days that had none; the partitions' names.

    Logs of the days `kept_logs` (YYYYMMDD) stay.
    """
    kept = sorted(kept_logs)
    names = [
        row[0]
        for row in tx.rows(
            """SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
            JOIN pg_class p ON p.oid = i.inhparent
            WHERE p.relname IN ('log_chunk', 'sample', 'event') AND c.relname ~ '_[0-9]{8}$'
                AND right(c.relname, 8) < to_char(CURRENT_DATE - %(days)s::int, 'YYYYMMDD')
                AND NOT (p.relname = 'log_chunk' AND right(c.relname, 8) = ANY(%(kept)s::text[]))""",
            {"days": retain_days, "kept": kept},
        )
    ]
    for name in names:
        if name.startswith("event_"):
            events.raise_floor(tx, name)
        tx.run(f'DROP TABLE "{name}"')
    events.raise_floor(tx, "event_default", retain_days)
    for default, day in (("sample_default", "day"), ("event_default", "day")):
        tx.run(f"DELETE FROM {default} WHERE {day} < CURRENT_DATE - %(days)s::int", {"days": retain_days})
    tx.run(
        """DELETE FROM log_chunk_default WHERE log_day < CURRENT_DATE - %(days)s::int
            AND to_char(log_day, 'YYYYMMDD') <> ALL(%(kept)s::text[])""",
        {"days": retain_days, "kept": kept},
    )
    return names


def make_partitions(tx: Tx, ahead: int) -> int:
    """Makes the coming days' partitions; how many were missing."""
    return int(tx.value("SELECT make_day_partitions(%(ahead)s)", {"ahead": ahead}))


OLD_JOBS = {"job": "finished_at", "tracked_job": "ended_at"}
"""Tables of jobs by UUIDs of version 7, and where each says when a job ended."""


def drop_old_jobs(tx: Tx, table: str, retain_days: int, limit: int, after: str | None) -> Row:
    """Removes those of the next `limit` jobs behind the id `after` that ended more than `retain_days` ago.

    With all that belongs to them. Returns gone, seen (less than `limit`: this was the last of them) and the last id.
    Ids begin with the time of the submit, so that no job that came later is looked at.
    """
    ended = OLD_JOBS[table]
    row = tx.row(
        f"""WITH seen AS MATERIALIZED (
            SELECT id FROM {table} WHERE id > COALESCE(%(after)s::uuid, '00000000-0000-0000-0000-000000000000')
                AND id < (lpad(to_hex((extract(epoch FROM now() - make_interval(days => %(days)s)) * 1000)::bigint),
                    12, '0') || repeat('0', 20))::uuid
            ORDER BY id LIMIT %(limit)s
        ), gone AS (
            DELETE FROM {table} j USING seen WHERE j.id = seen.id AND j.state > 3
                AND j.{ended} < now() - make_interval(days => %(days)s) RETURNING 1)
        SELECT (SELECT count(*) FROM gone) AS gone, (SELECT count(*) FROM seen) AS seen,
            (SELECT id FROM seen ORDER BY id DESC LIMIT 1) AS last""",
        {"days": retain_days, "limit": limit, "after": after},
    )
    assert row is not None
    return row


def drop_old_keys(tx: Tx, retain_hours: int, limit: int) -> int:
    """Removes at most `limit` idempotency keys older than the retention, the oldest first; how many."""
    return tx.run(
        """DELETE FROM idempotency WHERE ctid = ANY (ARRAY(SELECT ctid FROM idempotency
            WHERE created_at < now() - make_interval(hours => %(hours)s)
            ORDER BY created_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))""",
        {"hours": retain_hours, "limit": limit},
    )


def try_key_lock(tx: Tx, tenant_id: UUID, method: str, path: str, key: str) -> bool:
    """Whether no other transaction serves this idempotency key now."""
    return bool(
        tx.value(
            "SELECT pg_try_advisory_xact_lock(hashtextextended(%(k)s, 73))",
            {"k": f"{tenant_id} {method} {path} {key}"},
        )
    )


def stored_answer(tx: Tx, tenant_id: UUID, method: str, path: str, key: str) -> Row | None:
    """The answer that was given under an idempotency key: body_sha256, status, answer."""
    return tx.row(
        """SELECT body_sha256, status, answer FROM idempotency
        WHERE tenant_id = %(t)s AND method = %(m)s AND path = %(p)s AND key = %(k)s""",
        {"t": tenant_id, "m": method, "p": path, "k": key},
    )


def store_answer(
    tx: Tx, tenant_id: UUID, method: str, path: str, key: str, body_sha256: bytes, status: int, answer: Any
) -> None:
    """Keeps the answer of an idempotency key."""
    tx.run(
        """INSERT INTO idempotency (tenant_id, method, path, key, body_sha256, status, answer)
        VALUES (%(t)s, %(m)s, %(p)s, %(k)s, %(b)s, %(s)s, %(a)s)""",
        {"t": tenant_id, "m": method, "p": path, "k": key, "b": body_sha256, "s": status, "a": Json(answer)},
    )


def ping(tx: Tx) -> bool:
    """Whether the database answers."""
    return bool(tx.value("SELECT 1") == 1)
