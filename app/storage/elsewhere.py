"""Statements about retries that other nodes should have first."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Tx

WOKEN = 3
"""Other nodes told of each retry; whoever looks by itself finds it too."""


def keep_away(tx: Tx, job_ids: Sequence[UUID], for_s: float) -> frozenset[str]:
    """Keeps retries for `for_s` seconds from the nodes where they failed, if others could ever run them; some of those.

    A gang is not meant: who places it knows where it failed.
    """
    rows = tx.rows(
        """WITH bad AS MATERIALIZED (
            SELECT a.job_id, array_agg(DISTINCT a.node_id) AS nodes FROM attempt a
            WHERE a.job_id = ANY(%(ids)s) AND a.outcome IN ('failed', 'timed_out', 'out_of_memory', 'node_fault')
            GROUP BY 1
        ), other AS MATERIALIZED (
            SELECT bad.job_id, bad.nodes, o.id FROM bad JOIN job j ON j.id = bad.job_id
            JOIN scheduling_key k ON k.id = j.key_id AND k.members = 1 CROSS JOIN LATERAL (
                SELECT n.id FROM node n WHERE n.kind = 'agent' AND n.state = 'ready' AND n.id <> ALL(bad.nodes)
                    AND k.runner = ANY(n.capabilities) AND n.cpus_milli >= k.cpus_milli
                    AND n.memory_bytes >= k.memory_bytes AND (k.gpus = 0 OR k.gpus <= (
                        SELECT count(*) FROM jsonb_array_elements(n.gpus) g
                        WHERE (g ->> 'memory_bytes')::bigint >= k.gpu_memory_bytes
                            AND position(lower(k.gpu_model) IN lower(g ->> 'model')) > 0))
                ORDER BY n.last_seen_at DESC LIMIT %(woken)s) o
        ), kept AS (
            INSERT INTO retry_elsewhere AS r (job_id, node_id, until)
            SELECT DISTINCT job_id, unnest(nodes), clock_timestamp() + make_interval(secs => %(for)s) FROM other
            ON CONFLICT (job_id, node_id) DO UPDATE SET until = EXCLUDED.until
        ) SELECT DISTINCT id FROM other""",
        {"ids": list(job_ids), "for": for_s, "woken": WOKEN},
    )
    return frozenset(row.id for row in rows)


def nodes_kept_from(tx: Tx, job_id: UUID) -> set[str]:
    """The nodes that leave a retry to others now."""
    rows = tx.rows("SELECT node_id FROM retry_elsewhere WHERE job_id = %(id)s AND until > now()", {"id": job_id})
    return {row.node_id for row in rows}


def forget(tx: Tx) -> None:
    """Removes what is over."""
    tx.run("DELETE FROM retry_elsewhere WHERE until < clock_timestamp()")
