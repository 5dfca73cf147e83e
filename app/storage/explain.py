"""What an explanation reads: one job with its key, its tenant, all nodes, and who is before it. Bounded, no locks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx
from app.storage.jobs import VIEW

_TENANT = """t.name, t.active, t.weight, t.quota_jobs, t.quota_cpus_milli, t.quota_memory_bytes, t.quota_gpus,
    t.quota_gpu_memory_bytes, u.*"""
_USED = """SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
    COALESCE(sum(memory_bytes), 0)::bigint AS used_memory, COALESCE(sum(gpus), 0)::bigint AS used_gpus,
    COALESCE(sum(gpu_memory_bytes), 0)::bigint AS used_gpu_memory FROM usage"""


def job_now(tx: Tx, job_id: UUID) -> Row | None:
    """A job as shown, with `key_id`, `queue_seq`, `failures`, `max_retries`, its last attempt, and the time `now`."""
    return tx.row(
        f"""SELECT {VIEW}, j.key_id, j.queue_seq, j.failures, s.max_retries, a.outcome AS last_outcome,
            a.exit_code AS last_exit_code, a.signal AS last_signal, a.claimed_at, a.started_at AS attempt_started_at,
            clock_timestamp() AS now
        FROM job j JOIN job_spec s ON s.job_id = j.id
        LEFT JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt AND a.member = 0 WHERE j.id = %(id)s""",
        {"id": job_id},
    )


def key_now(tx: Tx, key_id: int) -> Row:
    """A scheduling key."""
    return tx.row("SELECT * FROM scheduling_key WHERE id = %(id)s", {"id": key_id})


def tenant_now(tx: Tx, tenant_id: UUID) -> Row | None:
    """A tenant's quota and what it holds on all nodes together (`used_jobs` …)."""
    return tx.row(
        f"""SELECT {_TENANT} FROM tenant t CROSS JOIN LATERAL ({_USED} WHERE tenant_id = t.id) u
        WHERE t.id = %(id)s""",
        {"id": tenant_id},
    )


def nodes_now(tx: Tx, with_gpus: bool, external_within_s: float, only: Sequence[str] | None = None) -> Sequence[Row]:
    """Every node (or those named in `only`) with what is allocated on it, and what is `held` of its GPUs.

    One statement for thousands. Of executors outside only those heard lately: each that ever asked for a job has left
    a row.
    """
    gpus = (
        """n.gpus, n.gpus_out, n.gpu_sharing, (SELECT jsonb_object_agg(h.uuid, h.bytes) FROM (
            SELECT gpu_uuid AS uuid, sum(memory_bytes) AS bytes FROM gpu_hold WHERE gpu_uuid = ANY(
                ARRAY(SELECT g ->> 'uuid' FROM jsonb_array_elements(n.gpus) g)) GROUP BY 1) h)"""
        if with_gpus
        else "'[]'::jsonb AS gpus, '{}'::jsonb AS gpus_out, '{}'::jsonb AS gpu_sharing, NULL::jsonb"
    )
    return tx.rows(
        f"""SELECT n.id, n.kind, n.state, n.capabilities, n.slots, n.cpus_milli, n.memory_bytes, {gpus} AS held,
            extract(epoch FROM clock_timestamp() - n.last_seen_at)::float AS silent_s,
            COALESCE(u.jobs, 0) AS used_jobs, COALESCE(u.cpus, 0) AS used_cpus, COALESCE(u.memory, 0) AS used_memory
        FROM node n LEFT JOIN (
            SELECT node_id, sum(jobs)::bigint AS jobs, sum(cpus_milli)::bigint AS cpus,
                sum(memory_bytes)::bigint AS memory FROM usage GROUP BY node_id) u ON u.node_id = n.id
        WHERE (n.kind = 'agent' OR n.last_seen_at > clock_timestamp() - make_interval(secs => %(within)s))
            AND (%(only)s::text[] IS NULL OR n.id = ANY(%(only)s))""",
        {"within": external_within_s, "only": None if only is None else list(only)},
    )


def planners_note(tx: Tx, job_id: UUID) -> str | None:
    """What the planner said when it last placed a job nowhere."""
    note: str | None = tx.value("SELECT message FROM plan_note WHERE job_id = %(id)s", {"id": job_id})
    return note


def planned(tx: Tx, job_id: UUID) -> Row | None:
    """What the planner noted of a job: reason, message, numbers."""
    return tx.row("SELECT reason, message, numbers FROM plan_note WHERE job_id = %(id)s", {"id": job_id})


def reserved(tx: Tx) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The reservations that count, by node."""
    rows = tx.rows(
        """SELECT node_id, reservations_on(node_id) AS reserved FROM (SELECT DISTINCT node_id FROM reservation) r"""
    )
    return {row.node_id: row.reserved for row in rows if row.reserved}


def held_before(tx: Tx, job_id: UUID) -> set[str]:
    """The nodes that have held a job."""
    return {row[0] for row in tx.rows("SELECT DISTINCT node_id FROM attempt WHERE job_id = %(id)s", {"id": job_id})}


def jobs_before(tx: Tx, key_id: int, low_water: int, queue_seq: int, most: int) -> int:
    """How many ready jobs of the key are before a place in the queue, counted up to `most`."""
    return int(
        tx.value(
            """SELECT count(*) FROM (SELECT 1 FROM job WHERE key_id = %(key)s AND state = 0 AND ready
                AND queue_seq >= %(low)s AND queue_seq < %(seq)s ORDER BY queue_seq LIMIT %(most)s) b""",
            {"key": key_id, "low": low_water, "seq": queue_seq, "most": most},
        )
    )


def jobs_waiting(tx: Tx, keys: Sequence[tuple[int, int]], never_held_by: str | None, most: int) -> dict[int, int]:
    """How many ready jobs wait behind each (key, low water), counted up to `most`."""
    rows = tx.rows(
        """SELECT k.id, (SELECT count(*) FROM (SELECT 1 FROM job j WHERE j.key_id = k.id AND j.state = 0 AND j.ready
                AND j.queue_seq >= k.low AND (%(shy)s::text IS NULL OR NOT EXISTS (
                    SELECT 1 FROM attempt a WHERE a.job_id = j.id AND a.node_id = %(shy)s))
                ORDER BY j.queue_seq LIMIT %(most)s) w) AS n
        FROM unnest(%(keys)s::bigint[], %(lows)s::bigint[]) AS k (id, low)""",
        {"keys": [k for k, _low in keys], "lows": [low for _k, low in keys], "shy": never_held_by, "most": most},
    )
    return {row.id: row.n for row in rows}
