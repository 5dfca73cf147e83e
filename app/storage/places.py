"""Statements of what the scheduler places: members written with leases that wait till their nodes fetch them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx, records


def lock_waiting(tx: Tx, job_id: UUID) -> Row | None:
    """A pending, ready job, locked, with its key's shape and what a node must know; None when it no longer waits."""
    return tx.row(
        """SELECT j.id, j.tenant_id, j.key_id, j.attempt, k.class, k.runner, k.cpus_milli, k.memory_bytes, k.gpus,
            k.gpu_memory_bytes, k.gpu_model, k.gpu_shared, k.members, s.time_limit_s, s.grace_s
        FROM job j JOIN scheduling_key k ON k.id = j.key_id JOIN job_spec s ON s.job_id = j.id
        WHERE j.id = %(id)s AND j.state = 0 AND j.ready FOR NO KEY UPDATE OF j""",
        {"id": job_id},
    )


def tenant_of(tx: Tx, job_id: UUID) -> UUID | None:
    """Whose job it is, read without a lock."""
    tenant: UUID | None = tx.value("SELECT tenant_id FROM job WHERE id = %(id)s", {"id": job_id})
    return tenant


def has_quota(tx: Tx, tenant_id: UUID) -> bool:
    """Whether anything bounds what the tenant may hold."""
    return bool(
        tx.value(
            """SELECT COALESCE(quota_jobs, quota_cpus_milli, quota_memory_bytes, quota_gpus, quota_gpu_memory_bytes)
                IS NOT NULL FROM tenant WHERE id = %(id)s""",
            {"id": tenant_id},
        )
    )


def write_members(tx: Tx, job_id: UUID, members: Sequence[Mapping[str, Any]], lease_s: float) -> None:
    """Starts a locked waiting job on the locked nodes of its `members`, whose leases wait to be delivered.

    Each member: attempt_id, member, node_id, node_ip, token and its share; the first leads. The job's reservation and
    note go.
    """
    params = {"job": job_id, "members": records(members), "lease": lease_s, "plain": len(members) == 1}
    tx.run(
        """WITH held AS MATERIALIZED (
            SELECT * FROM json_to_recordset(%(members)s) AS h (attempt_id uuid, member smallint, node_id text,
                node_ip text, token uuid, tenant_id uuid, cpus_milli bigint, memory_bytes bigint, gpus integer,
                gpu_memory_bytes bigint)
        ), lead AS MATERIALIZED (SELECT attempt_id, node_id FROM held WHERE member = 0), moved AS (
            UPDATE job SET state = 1, ready = false, reason = NULL, message = '', attempt = job.attempt + 1,
                attempt_id = lead.attempt_id, node_id = lead.node_id
            FROM lead WHERE job.id = %(job)s RETURNING job.attempt AS number
        ), a AS (
            INSERT INTO attempt (id, job_id, number, node_id, node_ip, token, log_day, member, leader_id)
            SELECT h.attempt_id, %(job)s, m.number, h.node_id, h.node_ip, h.token, CURRENT_DATE, h.member,
                CASE WHEN NOT %(plain)s THEN lead.attempt_id END FROM held h, moved m, lead
        ), l AS (
            INSERT INTO allocation (attempt_id, tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes,
                token)
            SELECT attempt_id, tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, token FROM held
        ), e AS (
            INSERT INTO lease (attempt_id, node_id, token, expires_at, delivered)
            SELECT attempt_id, node_id, token, clock_timestamp() + make_interval(secs => %(lease)s), false FROM held
        ), r AS (DELETE FROM reservation WHERE job_id = %(job)s), n AS (DELETE FROM plan_note WHERE job_id = %(job)s)
        INSERT INTO usage AS u (tenant_id, node_id, jobs, cpus_milli, memory_bytes, gpus, gpu_memory_bytes)
        SELECT tenant_id, node_id, count(*), sum(cpus_milli), sum(memory_bytes), sum(gpus), sum(gpus * gpu_memory_bytes)
        FROM held GROUP BY tenant_id, node_id ORDER BY tenant_id, node_id
        ON CONFLICT (tenant_id, node_id) DO UPDATE SET jobs = u.jobs + EXCLUDED.jobs,
            cpus_milli = u.cpus_milli + EXCLUDED.cpus_milli, memory_bytes = u.memory_bytes + EXCLUDED.memory_bytes,
            gpus = u.gpus + EXCLUDED.gpus, gpu_memory_bytes = u.gpu_memory_bytes + EXCLUDED.gpu_memory_bytes""",
        params,
    )


def deliver(tx: Tx, node_id: str, limit: int, lease_s: float) -> Sequence[Row]:
    """Marks up to `limit` undelivered leases of a locked node as delivered and begins them anew.

    Each row: all that a node must know of a member. Those of jobs that are to be stopped are left.
    """
    return tx.rows(
        """WITH mine AS MATERIALIZED (
            SELECT l.attempt_id, l.member FROM lease l JOIN attempt a ON a.id = l.attempt_id
            JOIN job j ON j.id = a.job_id
            WHERE l.node_id = %(node)s AND NOT l.delivered AND j.state IN (1, 2)
            ORDER BY l.attempt_id LIMIT %(limit)s FOR UPDATE OF l
        ), told AS (
            UPDATE lease l SET delivered = true, expires_at = clock_timestamp() + make_interval(secs => %(lease)s)
            FROM mine WHERE l.attempt_id = mine.attempt_id AND l.member = mine.member
            RETURNING l.attempt_id, l.token, l.expires_at)
        SELECT j.id, j.tenant_id, j.key_id, j.class, j.type, a.number AS attempt, a.id AS attempt_id, told.token,
            told.expires_at, a.log_day, a.member, a.leader_id, s.members, o.cpus_milli, o.memory_bytes, o.gpus,
            o.gpu_memory_bytes, k.gpu_model, k.gpu_shared, o.gpu_uuids,
            (SELECT min(COALESCE(memory_bytes, gpu_bytes)) FROM gpu_hold h WHERE h.attempt_id = a.id) AS gpu_bytes,
            s.runner, s.binary_url, s.binary_sha256, s.image, s.script,
            s.command, s.arguments, s.environment, s.hard_limits, s.time_limit_s, s.grace_s, s.config,
            COALESCE(s.preemptible, t.allow_preemption) AS may_be_preempted
        FROM told JOIN attempt a ON a.id = told.attempt_id JOIN allocation o ON o.attempt_id = a.id
        JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id JOIN scheduling_key k ON k.id = j.key_id
        JOIN tenant t ON t.id = j.tenant_id ORDER BY a.id""",
        {"node": node_id, "limit": limit, "lease": lease_s},
    )
