"""Statements of a claim: lock the node, see what is free, take jobs, write what is held.

What every claim runs are functions of the database, so that their plans are kept: migrations/versions/0006_plans.sql.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from app.domain.policy import Take
from app.domain.resources import Gpu
from app.storage import quota_holds
from app.storage.database import Row, Tx, records


@dataclass(frozen=True)
class Hold:
    """One allocation to write: whose, for which taken job, how much, which GPUs, whole or (`gpu_shared`) a slice."""

    attempt_id: UUID
    job_id: UUID
    number: int
    token: UUID
    tenant_id: UUID
    cpus_milli: int
    memory_bytes: int
    gpus: int
    gpu_memory_bytes: int
    gpus_given: tuple[Gpu, ...] = ()
    gpu_shared: bool = False

    @property
    def gpu_uuids(self) -> tuple[str, ...]:
        """The GPUs in the order of the PCI bus."""
        return tuple(gpu.uuid for gpu in self.gpus_given)

    @property
    def each_gpu_bytes(self) -> int:
        """What it may use of each of its GPUs: its slice, or the smallest of them; 0 without any."""
        least = min((gpu.memory_bytes for gpu in self.gpus_given), default=0)
        return self.gpu_memory_bytes if self.gpu_shared else least

    def columns(self) -> dict[str, object]:
        """What is written of it besides its GPUs."""
        return {name: value for name, value in vars(self).items() if name not in {"gpus_given", "gpu_shared"}}


def lock_node(tx: Tx, node_id: str) -> Row | None:
    """The node's row, locked for this transaction, with what is allocated on it (`used_jobs` …, by usage rows).

    With it the `classes` in which any key is live, whether anything here is `undelivered`, and what is `reserved` here
    (None: nothing). `held` maps each of its GPUs that anybody holds to what slices hold of it, None for all.
    """
    return tx.row(
        """SELECT (f.node).*, used_jobs, used_cpus, used_memory, held, classes, undelivered, reserved
        FROM lock_node(%(node)s) f""",
        {"node": node_id},
    )


def neighbours(tx: Tx, node_id: str, most_free: int, limit: int) -> Sequence[Row]:
    """Ready agents other than `node_id` with GPUs to give and fewer than `most_free` whole ones, the fullest first.

    With what is allocated on each (`used_jobs` …) and `held` as `lock_node` has it; read without a lock.
    """
    return tx.rows(
        """SELECT n.*, u.*, h.held FROM node n CROSS JOIN LATERAL (
            SELECT jsonb_object_agg(g.uuid, g.bytes) AS held, count(*) AS taken, COALESCE(bool_or(g.bytes > 0), false)
                AS shares
            FROM (SELECT gpu_uuid AS uuid, sum(memory_bytes) AS bytes FROM gpu_hold
                WHERE node_id = n.id GROUP BY 1) g) h
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
        WHERE n.kind = 'agent' AND n.state = 'ready' AND n.gpus <> '[]' AND n.id <> %(node)s
            AND jsonb_array_length(n.gpus) - h.taken < %(most)s
            AND (jsonb_array_length(n.gpus) > h.taken OR h.shares)
        ORDER BY jsonb_array_length(n.gpus) - h.taken, n.id LIMIT %(limit)s""",
        {"node": node_id, "most": most_free, "limit": limit},
    )


def try_lock_tenants(tx: Tx, tenants: Sequence[UUID]) -> set[UUID]:
    """Takes the quota locks of these tenants for this transaction; those that no other claim has."""
    rows = tx.rows(
        """SELECT t FROM unnest(%(tenants)s::uuid[]) t
        WHERE pg_try_advisory_xact_lock(hashtextextended('quota:' || t, 71))""",
        {"tenants": list(tenants)},
    )
    return {row[0] for row in rows}


def wait_for_tenant(tx: Tx, tenant_id: UUID, at_most_s: float) -> bool:
    """Takes the quota lock of a tenant for this transaction; whether it was to be had within `at_most_s`.

    Who waits here comes before every claim that only tries. Hold no locks but nodes': who has a tenant's lock waits
    for no node's, so that this is no part of a deadlock.
    """
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %(tenant)s::uuid, 71))"
    return tx.locks_within(at_most_s, lock, {"tenant": tenant_id})


def tenant_usage(tx: Tx, tenants: Sequence[UUID], for_job: UUID | None = None) -> dict[UUID, Row]:
    """What each tenant may hold and holds on all nodes together. Exact for a tenant whose quota lock is held.

    Its quotas are without what is kept of them, unless that is kept `for_job`.
    """
    rows = tx.rows(
        f"""SELECT t.id AS tenant_id, t.active, t.quota_jobs - COALESCE(k.jobs, 0) AS quota_jobs,
            t.quota_cpus_milli - COALESCE(k.cpus_milli, 0) AS quota_cpus_milli,
            t.quota_memory_bytes - COALESCE(k.memory_bytes, 0) AS quota_memory_bytes,
            t.quota_gpus - COALESCE(k.gpus, 0) AS quota_gpus,
            t.quota_gpu_memory_bytes - COALESCE(k.gpu_memory_bytes, 0) AS quota_gpu_memory_bytes, u.*
        FROM tenant t LEFT JOIN LATERAL (
            SELECT h.* FROM {quota_holds.IN_FORCE} AND h.tenant_id = t.id AND h.job_id IS DISTINCT FROM %(for_job)s
            LIMIT 1) k ON true
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS jobs, COALESCE(sum(cpus_milli), 0)::bigint AS cpus_milli,
                COALESCE(sum(memory_bytes), 0)::bigint AS memory_bytes, COALESCE(sum(gpus), 0)::bigint AS gpus,
                COALESCE(sum(gpu_memory_bytes), 0)::bigint AS gpu_memory_bytes
            FROM usage WHERE tenant_id = t.id) u
        WHERE t.id = ANY(%(tenants)s)""",
        {"tenants": list(tenants), "for_job": for_job},
    )
    return {row.tenant_id: row for row in rows}


def take_jobs(
    tx: Tx, takes: Sequence[Take], low_waters: dict[int, int], node_id: str, never_held_by: str | None
) -> list[Row]:
    """Moves up to `count` of each key's oldest ready jobs to starting on `node_id`, skipping rows that others hold.

    Each row: the job with its spec, a new attempt id and number. `never_held_by` leaves out jobs that node held before.
    """
    return list(
        tx.rows(
            "SELECT * FROM take_jobs(%(keys)s::bigint[], %(counts)s::int[], %(low)s::bigint[], %(node)s, %(shy)s)",
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
    rows = [hold.columns() for hold in holds]
    terms = tx.row(
        "SELECT * FROM hold_jobs(%(holds)s, %(node)s, %(ip)s, %(lease)s, %(running)s)",
        {"holds": records(rows), "node": node.id, "ip": node.ip, "lease": lease_s, "running": running},
    )
    if any(hold.gpu_uuids for hold in holds):
        pin(tx, str(node.id), holds)
    return terms


def pin(tx: Tx, node_id: str, holds: Sequence[Hold]) -> None:
    """Writes which GPUs each allocation holds. The table itself refuses a second holder, and slices beyond a GPU."""
    pairs = [(h.attempt_id, gpu, h.gpu_memory_bytes if h.gpu_shared else None) for h in holds for gpu in h.gpus_given]
    tx.run(
        """WITH pair AS (SELECT * FROM unnest(%(attempts)s::uuid[], %(uuids)s::text[], %(slices)s::bigint[],
            %(sizes)s::bigint[]) WITH ORDINALITY AS p (attempt_id, gpu_uuid, memory_bytes, gpu_bytes, place)),
        held AS (INSERT INTO gpu_hold (gpu_uuid, node_id, attempt_id, memory_bytes, gpu_bytes)
            SELECT gpu_uuid, %(node)s, attempt_id, memory_bytes, gpu_bytes FROM pair),
        listed AS (SELECT attempt_id, array_agg(gpu_uuid ORDER BY place) AS uuids FROM pair GROUP BY attempt_id),
        told AS (UPDATE attempt a SET gpu_uuids = l.uuids FROM listed l WHERE a.id = l.attempt_id)
        UPDATE allocation a SET gpu_uuids = l.uuids FROM listed l WHERE a.attempt_id = l.attempt_id""",
        {
            "attempts": [attempt for attempt, _gpu, _bytes in pairs],
            "uuids": [gpu.uuid for _attempt, gpu, _bytes in pairs],
            "slices": [slice_bytes for _attempt, _gpu, slice_bytes in pairs],
            "sizes": [gpu.memory_bytes for _attempt, gpu, _bytes in pairs],
            "node": node_id,
        },
    )


def gpus_of(node: Row) -> tuple[Gpu, ...]:
    """The GPUs that a node registered; those that erred, or that an operator took out, are not healthy.

    Whether jobs may share one is what an operator said, else what the agent's setting says.
    """
    out = node.gpus_out
    return tuple(
        Gpu(
            g["uuid"],
            g["model"],
            g["memory_bytes"],
            g.get("index", 0),
            g.get("healthy", True) and g["uuid"] not in out,
            out[g["uuid"]]["reason"] if g["uuid"] in out else g.get("reason", ""),
            node.gpu_sharing.get(g["uuid"], g.get("sharing", False)),
        )
        for g in node.gpus
    )
