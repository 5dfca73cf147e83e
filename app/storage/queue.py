"""Statements of queue positions. Their cost grows with what stands before a job, up to a cap, and with the tenants that
wait; never with the backlog."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx


def place(tx: Tx, job_id: UUID) -> Row | None:
    """Where a job stands: its tenant, state, `queue_seq`, and its key's class, priority and shape."""
    return tx.row(
        """SELECT j.tenant_id, j.state, j.ready, j.queue_seq, k.class, k.priority, k.cpus_milli, k.memory_bytes, k.gpus
        FROM job j JOIN scheduling_key k ON k.id = j.key_id WHERE j.id = %(id)s""",
        {"id": job_id},
    )


def before_in_tenant(tx: Tx, at: Row, most: int) -> int:
    """How many ready jobs of the same tenant and class go first: of greater priority, or as great and older. At most
    `most` are counted."""
    return int(
        tx.value(
            """SELECT count(*) FROM (
                SELECT 1 FROM scheduling_key k CROSS JOIN LATERAL (
                    SELECT 1 FROM job j WHERE j.key_id = k.id AND j.state = 0 AND j.ready AND j.queue_seq >= k.low_water
                        AND j.queue_seq < CASE WHEN k.priority > %(priority)s THEN 9223372036854775807 ELSE %(seq)s END
                    ORDER BY j.queue_seq LIMIT %(most)s) w
                WHERE k.live AND k.class = %(class)s AND k.tenant_id = %(tenant)s
                    AND (k.priority > %(priority)s OR (k.priority = %(priority)s AND k.low_water < %(seq)s))
                LIMIT %(most)s) b""",
            {
                "class": at._mapping["class"],
                "tenant": at.tenant_id,
                "priority": at.priority,
                "seq": at.queue_seq,
                "most": most,
            },
        )
    )


def waiting_tenants(tx: Tx, priority_class: int) -> Sequence[Row]:
    """Tenants with ready jobs of a class that may start one: weight, `used_…`, the oldest such job of the key that
    goes first (`head`), and how many are pending in that class (`waiting`, those that are not ready too)."""
    return tx.rows(
        """WITH RECURSIVE walk AS (
            (SELECT tenant_id FROM scheduling_key WHERE live AND class = %(class)s ORDER BY tenant_id LIMIT 1)
            UNION ALL
            SELECT n.tenant_id FROM walk w CROSS JOIN LATERAL (
                SELECT tenant_id FROM scheduling_key WHERE live AND class = %(class)s AND tenant_id > w.tenant_id
                ORDER BY tenant_id LIMIT 1) n
        ), totals AS MATERIALIZED (
            SELECT tenant_id, sum(n)::bigint AS waiting FROM (
                SELECT tenant_id, n FROM job_total WHERE class = %(class)s AND state = 0
                UNION ALL SELECT tenant_id, n FROM job_count_delta WHERE class = %(class)s AND state = 0) c
            GROUP BY tenant_id
        )
        SELECT t.id AS tenant_id, t.weight, u.*, h.head, COALESCE(c.waiting, 0) AS waiting
        FROM walk w JOIN tenant t ON t.id = w.tenant_id LEFT JOIN totals c ON c.tenant_id = w.tenant_id
        CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory, COALESCE(sum(gpus), 0)::bigint AS used_gpus
            FROM usage WHERE tenant_id = w.tenant_id) u
        CROSS JOIN LATERAL (
            SELECT f.head FROM scheduling_key k CROSS JOIN LATERAL (
                SELECT j.queue_seq AS head FROM job j
                WHERE j.key_id = k.id AND j.state = 0 AND j.ready AND j.queue_seq >= k.low_water
                ORDER BY j.queue_seq LIMIT 1) f
            WHERE k.live AND k.class = %(class)s AND k.tenant_id = w.tenant_id
            ORDER BY k.priority DESC, k.low_water LIMIT 1) h
        WHERE t.active AND (t.quota_jobs IS NULL OR u.used_jobs < t.quota_jobs)""",
        {"class": priority_class},
    )
