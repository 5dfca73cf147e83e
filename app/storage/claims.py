"""Statements of a claim: lock the node, see what is free, take jobs, write what is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.policy import Take
from app.domain.resources import Gpu
from app.storage.database import Row, Tx

LOCK_NODE = "SELECT 1 FROM node WHERE id = %(node)s FOR NO KEY UPDATE"
"""Nodes come first in the lock order."""


@dataclass(frozen=True)
class Hold:
    """One allocation to write: whose, for which taken job, how much, and which GPUs."""

    attempt_id: UUID
    job_id: UUID
    number: int
    token: UUID
    tenant_id: UUID
    cpus_milli: int
    memory_bytes: int
    gpus: int
    gpu_memory_bytes: int
    gpu_uuids: tuple[str, ...]


def lock_node(tx: Tx, node_id: str) -> Row | None:
    """The node's row, locked for this transaction, with what is allocated on it (`used_jobs` …, by usage rows),
    its `held` GPUs, and the `classes` in which any key is live."""
    # Two statements in one exchange: the second must see what was committed while the first waited for the lock.
    return tx.row(
        f"""{LOCK_NODE};
        SELECT n.*, u.*, ARRAY(SELECT gpu_uuid FROM gpu_hold WHERE node_id = n.id) AS held,
            ARRAY(SELECT c FROM unnest('{{0,1,2}}'::smallint[]) c
                WHERE EXISTS (SELECT 1 FROM scheduling_key WHERE live AND class = c) ORDER BY c) AS classes
        FROM node n CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
        WHERE n.id = %(node)s""",
        {"node": node_id},
    )


def held_gpus(tx: Tx, uuids: Sequence[str]) -> set[str]:
    """Those of `uuids` that any node holds."""
    return {row[0] for row in tx.rows("SELECT gpu_uuid FROM gpu_hold WHERE gpu_uuid = ANY(%(u)s)", {"u": list(uuids)})}


def try_lock_tenants(tx: Tx, tenants: Sequence[UUID]) -> set[UUID]:
    """Takes the quota locks of these tenants for this transaction; those that no other claim has."""
    rows = tx.rows(
        """SELECT t FROM unnest(%(tenants)s::uuid[]) t
        WHERE pg_try_advisory_xact_lock(hashtextextended('quota:' || t, 71))""",
        {"tenants": list(tenants)},
    )
    return {row[0] for row in rows}


def tenant_usage(tx: Tx, tenants: Sequence[UUID]) -> dict[UUID, Row]:
    """What each tenant may hold and holds on all nodes together. Exact for a tenant whose quota lock is held."""
    rows = tx.rows(
        """SELECT t.id AS tenant_id, t.active, t.quota_jobs, t.quota_cpus_milli, t.quota_memory_bytes, t.quota_gpus,
            t.quota_gpu_memory_bytes, u.*
        FROM tenant t CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS jobs, COALESCE(sum(cpus_milli), 0)::bigint AS cpus_milli,
                COALESCE(sum(memory_bytes), 0)::bigint AS memory_bytes, COALESCE(sum(gpus), 0)::bigint AS gpus,
                COALESCE(sum(gpu_memory_bytes), 0)::bigint AS gpu_memory_bytes
            FROM usage WHERE tenant_id = t.id) u
        WHERE t.id = ANY(%(tenants)s)""",
        {"tenants": list(tenants)},
    )
    return {row.tenant_id: row for row in rows}


def take_jobs(
    tx: Tx, takes: Sequence[Take], low_waters: dict[int, int], node_id: str, never_held_by: str | None
) -> list[Row]:
    """Moves up to `count` of each key's oldest ready jobs to starting on `node_id`, skipping rows that others hold.

    Each row: the job with its spec, a new attempt id and number. Arrays instead of joins keep the planner from reading
    whole tables: it cannot know how few rows the walk brings. `never_held_by` leaves out jobs that node held before.
    """
    return list(
        tx.rows(
            """WITH want AS (
                SELECT * FROM unnest(%(keys)s::bigint[], %(counts)s::int[], %(low)s::bigint[])
                    WITH ORDINALITY AS w (key_id, n, low, place)
            ), picked AS MATERIALIZED (
                SELECT j.id, w.place, j.queue_seq FROM want w CROSS JOIN LATERAL (
                    SELECT id, queue_seq FROM job
                    WHERE key_id = w.key_id AND state = 0 AND ready AND queue_seq >= w.low
                        AND (%(shy)s::text IS NULL OR NOT EXISTS (
                            SELECT 1 FROM attempt a WHERE a.job_id = job.id AND a.node_id = %(shy)s))
                    ORDER BY queue_seq LIMIT w.n FOR UPDATE SKIP LOCKED) j
            ), taken AS (
                UPDATE job SET state = 1, ready = false, reason = NULL, message = '', attempt = attempt + 1,
                    attempt_id = gen_random_uuid(), node_id = %(node)s
                WHERE id = ANY(ARRAY(SELECT id FROM picked))
                RETURNING id, tenant_id, key_id, class, type, attempt, attempt_id
            )
            SELECT taken.*, s.* FROM taken JOIN picked USING (id) JOIN job_spec s ON s.job_id = taken.id
            WHERE s.job_id = ANY(ARRAY(SELECT id FROM picked)) ORDER BY place, queue_seq""",
            {
                "keys": [take.key_id for take in takes],
                "counts": [take.count for take in takes],
                "low": [low_waters[take.key_id] for take in takes],
                "node": node_id,
                "shy": never_held_by,
            },
        )
    )


def write_holds(tx: Tx, node: Row, holds: Sequence[Hold], lease_s: float, running: bool) -> Row:
    """Writes attempts, allocations, leases, GPU holds and usage of one claim; row (log_day, expires_at).

    `running` is for executors that start at once: their attempts and jobs are running from now.
    """
    params: dict[str, object] = {
        "attempts": [h.attempt_id for h in holds],
        "jobs": [h.job_id for h in holds],
        "numbers": [h.number for h in holds],
        "tokens": [h.token for h in holds],
        "tenants": [h.tenant_id for h in holds],
        "cpus": [h.cpus_milli for h in holds],
        "memory": [h.memory_bytes for h in holds],
        "gpus": [h.gpus for h in holds],
        "gpu_memory": [h.gpu_memory_bytes for h in holds],
        "node": node.id,
        "ip": node.ip,
        "lease": lease_s,
        "running": running,
    }
    terms = tx.row(
        """WITH terms AS MATERIALIZED (
            SELECT CURRENT_DATE AS log_day, clock_timestamp() + make_interval(secs => %(lease)s) AS expires_at
        ), held AS (
            SELECT * FROM unnest(%(attempts)s::uuid[], %(jobs)s::uuid[], %(numbers)s::int[], %(tokens)s::uuid[],
                %(tenants)s::uuid[], %(cpus)s::bigint[], %(memory)s::bigint[], %(gpus)s::int[],
                %(gpu_memory)s::bigint[])
                AS h (attempt_id, job_id, number, token, tenant_id, cpus, memory, gpus, gpu_memory)
        ), a AS (
            INSERT INTO attempt (id, job_id, number, node_id, node_ip, token, log_day, started_at)
            SELECT attempt_id, job_id, number, %(node)s, %(ip)s, token, log_day,
                CASE WHEN %(running)s THEN now() END FROM held, terms
        ), l AS (
            INSERT INTO allocation (attempt_id, tenant_id, node_id, cpus_milli, memory_bytes, gpus,
                gpu_memory_bytes, token)
            SELECT attempt_id, tenant_id, %(node)s, cpus, memory, gpus, gpu_memory, token FROM held
        ), e AS (
            INSERT INTO lease (attempt_id, node_id, token, expires_at)
            SELECT attempt_id, %(node)s, token, expires_at FROM held, terms
        ), u AS (
            INSERT INTO usage AS u (tenant_id, node_id, jobs, cpus_milli, memory_bytes, gpus, gpu_memory_bytes)
            SELECT tenant_id, %(node)s, count(*), sum(cpus), sum(memory), sum(gpus), sum(gpus * gpu_memory) FROM held
            GROUP BY tenant_id ORDER BY tenant_id
            ON CONFLICT (tenant_id, node_id) DO UPDATE SET jobs = u.jobs + EXCLUDED.jobs,
                cpus_milli = u.cpus_milli + EXCLUDED.cpus_milli, memory_bytes = u.memory_bytes + EXCLUDED.memory_bytes,
                gpus = u.gpus + EXCLUDED.gpus, gpu_memory_bytes = u.gpu_memory_bytes + EXCLUDED.gpu_memory_bytes
        ) SELECT log_day, expires_at FROM terms""",
        params,
    )
    pinned = [(h.attempt_id, list(h.gpu_uuids), uuid) for h in holds for uuid in h.gpu_uuids]
    if pinned:
        _pin(tx, str(node.id), holds)
    if running:
        tx.run(
            "UPDATE job SET state = 2, started_at = COALESCE(started_at, now()) WHERE id = ANY(%(jobs)s)",
            params,
        )
    return terms


def _pin(tx: Tx, node_id: str, holds: Sequence[Hold]) -> None:
    """Writes which GPUs each allocation holds; the primary key makes a second holder impossible."""
    pairs = [(h.attempt_id, uuid) for h in holds for uuid in h.gpu_uuids]
    tx.run(
        """WITH pair AS (SELECT * FROM unnest(%(attempts)s::uuid[], %(uuids)s::text[]) AS p (attempt_id, gpu_uuid)),
        held AS (INSERT INTO gpu_hold (gpu_uuid, node_id, attempt_id) SELECT gpu_uuid, %(node)s, attempt_id FROM pair),
        listed AS (SELECT attempt_id, array_agg(gpu_uuid) AS uuids FROM pair GROUP BY attempt_id),
        told AS (UPDATE attempt a SET gpu_uuids = l.uuids FROM listed l WHERE a.id = l.attempt_id)
        UPDATE allocation a SET gpu_uuids = l.uuids FROM listed l WHERE a.attempt_id = l.attempt_id""",
        {"attempts": [p[0] for p in pairs], "uuids": [p[1] for p in pairs], "node": node_id},
    )


def gpus_of(node: Row) -> tuple[Gpu, ...]:
    """The GPUs that a node registered; those that erred, or that an operator took out, are not healthy."""
    out = node.gpus_out
    return tuple(
        Gpu(
            g["uuid"],
            g["model"],
            g["memory_bytes"],
            g.get("index", 0),
            g.get("healthy", True) and g["uuid"] not in out,
            out[g["uuid"]]["reason"] if g["uuid"] in out else g.get("reason", ""),
        )
        for g in node.gpus
    )
