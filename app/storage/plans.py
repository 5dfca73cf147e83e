"""What operators see of planning: the last cycle, what is reserved, who makes room. Reads only."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx

_IN_FORCE = """reservation r CROSS JOIN LATERAL (SELECT state, ready FROM job j WHERE j.id = r.job_id LIMIT 1) w
    WHERE r.expires_at > clock_timestamp() AND w.state = 0 AND w.ready"""
"""Reservations that count. The limit keeps PostgreSQL from reading all jobs that wait to find theirs."""


def last_cycle(tx: Tx) -> Row | None:
    """What the planner noted at its last look (`detail`), seconds since then, and now in seconds since 1970."""
    return tx.row(
        """SELECT detail, extract(epoch FROM clock_timestamp() - last_run_at)::float8 AS silent_s,
            extract(epoch FROM clock_timestamp())::float8 AS now FROM task_run WHERE name = 'plan'"""
    )


def count_reserved(tx: Tx) -> Row:
    """Jobs for which something is reserved now (`jobs`), and on how many nodes of each in all (`places`)."""
    row = tx.row(
        f"""SELECT count(DISTINCT r.job_id) AS jobs, count(DISTINCT (r.job_id, r.node_id)) AS places
        FROM {_IN_FORCE}"""
    )
    assert row is not None
    return row


def reserved(tx: Tx, limit: int, offset: int) -> Sequence[Row]:
    """What is reserved now: one row for each job and node, in the order in which it was made.

    `gpu_uuids` has a list for each member there.
    """
    return tx.rows(
        f"""SELECT h.*, j.type, t.name AS tenant, k.class, k.members AS of_members
        FROM (SELECT r.job_id, r.node_id, count(*) AS members, sum(r.cpus_milli)::bigint AS cpus_milli,
                sum(r.memory_bytes)::bigint AS memory_bytes, min(r.class) AS counts_as, min(r.starts_at) AS starts_at,
                min(r.made_at) AS made_at, min(r.expires_at) AS expires_at, min(r.why) AS why,
                jsonb_agg(to_jsonb(r.gpu_uuids) ORDER BY r.member) AS gpu_uuids
            FROM {_IN_FORCE} GROUP BY r.job_id, r.node_id) h
        JOIN job j ON j.id = h.job_id JOIN tenant t ON t.id = j.tenant_id JOIN scheduling_key k ON k.id = j.key_id
        ORDER BY min(h.made_at) OVER (PARTITION BY h.job_id), h.job_id, h.node_id
        LIMIT %(limit)s OFFSET %(offset)s""",
        {"limit": limit, "offset": offset},
    )


def count_making_room(tx: Tx, cause: int) -> int:
    """How many jobs were told to make room (`cause`) and have not ended."""
    return int(tx.value("SELECT count(*) FROM job WHERE state = 3 AND stop_cause = %(cause)s", {"cause": cause}))


def making_room(tx: Tx, cause: int, limit: int, offset: int) -> Sequence[Row]:
    """Jobs that were told to make room and have not ended, by id: their attempt, nodes, what they hold, since when."""
    return tx.rows(
        """WITH stopping AS MATERIALIZED (SELECT * FROM job WHERE state = 3 AND stop_cause = %(cause)s)
        SELECT j.id, j.attempt_id, j.type, t.name AS tenant, j.stop_reason, s.grace_s, h.*,
            (SELECT max(e.at) FROM event e WHERE e.job_id = j.id AND e.state = 3) AS since
        FROM (SELECT * FROM stopping ORDER BY id LIMIT %(limit)s OFFSET %(offset)s) j
        JOIN tenant t ON t.id = j.tenant_id JOIN job_spec s ON s.job_id = j.id CROSS JOIN LATERAL (
            SELECT COALESCE(array_agg(DISTINCT l.node_id), '{}') AS nodes,
                COALESCE(sum(l.cpus_milli), 0)::bigint AS cpus_milli,
                COALESCE(sum(l.memory_bytes), 0)::bigint AS memory_bytes, COALESCE(sum(l.gpus), 0)::bigint AS gpus
            FROM attempt a JOIN allocation l ON l.attempt_id = a.id
            WHERE a.job_id = j.id AND (a.id = j.attempt_id OR a.leader_id = j.attempt_id)) h ORDER BY j.id""",
        {"cause": cause, "limit": limit, "offset": offset},
    )


def still_stopping(tx: Tx, attempts: Sequence[UUID]) -> set[UUID]:
    """Those of `attempts` whose jobs are on their way out by them."""
    rows = tx.rows(
        """SELECT j.attempt_id FROM attempt a JOIN job j ON j.id = a.job_id AND j.attempt_id = a.id AND j.state = 3
        WHERE a.id = ANY(%(ids)s::uuid[])""",
        {"ids": list(attempts)},
    )
    return {row.attempt_id for row in rows}
