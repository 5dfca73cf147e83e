"""What is kept of tenants' quotas for jobs of theirs that waited too long: at most one job a tenant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx, records

IN_FORCE = """quota_hold h CROSS JOIN LATERAL (
        SELECT FROM job j WHERE j.id = h.job_id AND j.state = 0 AND j.ready LIMIT 1) w
    WHERE h.expires_at > clock_timestamp()"""
"""What counts now. The limit keeps PostgreSQL from reading all jobs that wait to find theirs."""


def replace_holds(tx: Tx, wanted: Sequence[Mapping[str, Any]], lasts_s: float) -> None:
    """Makes `wanted` (tenant_id, job_id, amounts) all that is kept, where its job still waits and its quota still has
    as much in all.

    What stays as it is gets a new end only when half of its time is over.
    """
    params = {"wanted": records(wanted), "lasts": lasts_s}
    tx.run(
        """DELETE FROM quota_hold h WHERE NOT EXISTS (
            SELECT 1 FROM json_to_recordset(%(wanted)s) AS w (tenant_id uuid, job_id uuid)
            JOIN job j ON j.id = w.job_id AND j.state = 0 AND j.ready
            WHERE w.tenant_id = h.tenant_id AND w.job_id = h.job_id)""",
        params,
    )
    if not wanted:
        return
    tx.run(
        """INSERT INTO quota_hold AS h (tenant_id, job_id, jobs, cpus_milli, memory_bytes, gpus, gpu_memory_bytes,
            expires_at)
        SELECT w.*, clock_timestamp() + make_interval(secs => %(lasts)s)
        FROM json_to_recordset(%(wanted)s) AS w (tenant_id uuid, job_id uuid, jobs bigint, cpus_milli bigint,
            memory_bytes bigint, gpus bigint, gpu_memory_bytes bigint)
        JOIN job j ON j.id = w.job_id AND j.state = 0 AND j.ready JOIN tenant t ON t.id = w.tenant_id
        WHERE COALESCE(w.jobs <= t.quota_jobs, true) AND COALESCE(w.cpus_milli <= t.quota_cpus_milli, true)
            AND COALESCE(w.memory_bytes <= t.quota_memory_bytes, true) AND COALESCE(w.gpus <= t.quota_gpus, true)
            AND COALESCE(w.gpu_memory_bytes <= t.quota_gpu_memory_bytes, true)
        ORDER BY w.tenant_id
        ON CONFLICT (tenant_id) DO UPDATE SET job_id = EXCLUDED.job_id, jobs = EXCLUDED.jobs,
            cpus_milli = EXCLUDED.cpus_milli, memory_bytes = EXCLUDED.memory_bytes, gpus = EXCLUDED.gpus,
            gpu_memory_bytes = EXCLUDED.gpu_memory_bytes, expires_at = EXCLUDED.expires_at,
            made_at = CASE WHEN h.job_id = EXCLUDED.job_id THEN h.made_at ELSE EXCLUDED.made_at END
        WHERE (h.job_id, h.jobs, h.cpus_milli, h.memory_bytes, h.gpus, h.gpu_memory_bytes)
                IS DISTINCT FROM (EXCLUDED.job_id, EXCLUDED.jobs, EXCLUDED.cpus_milli, EXCLUDED.memory_bytes,
                EXCLUDED.gpus, EXCLUDED.gpu_memory_bytes)
            OR h.expires_at < clock_timestamp() + make_interval(secs => %(lasts)s / 2)""",
        params,
    )


def forget(tx: Tx, tenant_id: UUID) -> None:
    """Ends what is kept of a tenant's quota; the next plan may keep it anew."""
    tx.run("DELETE FROM quota_hold WHERE tenant_id = %(tenant)s", {"tenant": tenant_id})


def of_tenant(tx: Tx, tenant_id: UUID) -> Row | None:
    """What is kept of a tenant's quota now, and for which job."""
    return tx.row(
        f"""SELECT h.job_id, h.jobs, h.cpus_milli, h.memory_bytes, h.gpus, h.gpu_memory_bytes FROM {IN_FORCE}
            AND h.tenant_id = %(tenant)s""",
        {"tenant": tenant_id},
    )


def count(tx: Tx) -> int:
    """Of how many tenants' quotas something is kept now."""
    return int(tx.value(f"SELECT count(*) FROM {IN_FORCE}"))


def page(tx: Tx, limit: int, offset: int) -> Sequence[Row]:
    """What is kept of quotas now, in the order in which that began; None for what the quota does not limit."""
    return tx.rows(
        f"""SELECT h.job_id, j.type, t.name AS tenant, k.class, k.members, h.made_at, h.expires_at,
            CASE WHEN t.quota_jobs IS NOT NULL THEN h.jobs END AS jobs,
            CASE WHEN t.quota_cpus_milli IS NOT NULL THEN h.cpus_milli END AS cpus_milli,
            CASE WHEN t.quota_memory_bytes IS NOT NULL THEN h.memory_bytes END AS memory_bytes,
            CASE WHEN t.quota_gpus IS NOT NULL THEN h.gpus END AS gpus,
            CASE WHEN t.quota_gpu_memory_bytes IS NOT NULL THEN h.gpu_memory_bytes END AS gpu_memory_bytes
        FROM (SELECT h.* FROM {IN_FORCE} ORDER BY h.made_at, h.job_id LIMIT %(limit)s OFFSET %(offset)s) h
        JOIN job j ON j.id = h.job_id JOIN tenant t ON t.id = h.tenant_id JOIN scheduling_key k ON k.id = j.key_id
        ORDER BY h.made_at, h.job_id""",
        {"limit": limit, "offset": offset},
    )
