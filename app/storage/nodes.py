"""Nodes: registered with a new incarnation, seen, offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Json, Row, Tx


def register(tx: Tx, node: Mapping[str, Any]) -> None:
    """Writes a node with its incarnation; whoever held the name before is stale from now on."""
    tx.run(
        """INSERT INTO node AS n (id, kind, incarnation, host, protocol, state, capabilities, slots, cpus_milli,
            memory_bytes, gpus, ip, cluster, labels, version, last_seen_at)
        VALUES (%(id)s, %(kind)s, %(incarnation)s, %(host)s, %(protocol)s, 'ready', %(capabilities)s,
            %(slots)s, %(cpus_milli)s, %(memory_bytes)s, %(gpus)s, %(ip)s, %(cluster)s, %(labels)s, %(version)s, now())
        ON CONFLICT (id) DO UPDATE SET kind = EXCLUDED.kind, incarnation = EXCLUDED.incarnation,
            host = EXCLUDED.host, protocol = EXCLUDED.protocol,
            state = CASE WHEN n.state = 'draining' THEN n.state ELSE 'ready' END,
            capabilities = EXCLUDED.capabilities, slots = EXCLUDED.slots, cpus_milli = EXCLUDED.cpus_milli,
            memory_bytes = EXCLUDED.memory_bytes, gpus = EXCLUDED.gpus, ip = EXCLUDED.ip, cluster = EXCLUDED.cluster,
            labels = EXCLUDED.labels, version = EXCLUDED.version, last_seen_at = now()""",
        {**node, "gpus": Json(node["gpus"]), "labels": Json(node["labels"])},
    )


def lock_host(tx: Tx, node_id: str) -> Row | None:
    """Which host a node's name belongs to and how many seconds ago it was seen, locked; None for a new name."""
    return tx.row(
        """SELECT host, kind, extract(epoch FROM clock_timestamp() - last_seen_at)::float AS silent_s FROM node
        WHERE id = %(id)s FOR NO KEY UPDATE""",
        {"id": node_id},
    )


def touch_external(tx: Tx, node_id: str, ip: str | None, incarnation: UUID) -> None:
    """Notes an external executor; unknown ones are added with room for anything."""
    tx.run(
        """INSERT INTO node (id, kind, incarnation, protocol, capabilities, slots, cpus_milli, memory_bytes, ip)
        VALUES (%(id)s, 'external', %(inc)s, 1, '{process}', 1000000, 1000000000, 9000000000000000, %(ip)s)
        ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), ip = COALESCE(EXCLUDED.ip, node.ip), state = 'ready'
        WHERE node.kind = 'external'""",
        {"id": node_id, "inc": incarnation, "ip": ip},
    )


def see(tx: Tx, node_id: str, incarnation: UUID) -> Row | None:
    """Notes a sign of life; the node's row, or None when a newer incarnation has registered."""
    return tx.row(
        """UPDATE node SET last_seen_at = now(), state = CASE WHEN state = 'offline' THEN 'ready' ELSE state END
        WHERE id = %(id)s AND incarnation = %(inc)s RETURNING state""",
        {"id": node_id, "inc": incarnation},
    )


def set_state(tx: Tx, node_id: str, state: str) -> bool:
    """Sets ready or draining; whether the node exists."""
    return tx.run("UPDATE node SET state = %(s)s WHERE id = %(id)s", {"id": node_id, "s": state}) > 0


def mark_offline(tx: Tx, silent_s: float) -> list[str]:
    """Ready nodes silent for so long become offline; their names. One that drains stays so till somebody ends it."""
    rows = tx.rows(
        """UPDATE node SET state = 'offline' WHERE state = 'ready'
        AND last_seen_at < now() - make_interval(secs => %(silent)s) RETURNING id""",
        {"silent": silent_s},
    )
    return [row[0] for row in rows]


def list_nodes(tx: Tx, kinds: Sequence[str], seen_within_s: float) -> Sequence[Row]:
    """Nodes seen lately with their latest active job and how many attempts they have ended."""
    return tx.rows(
        """SELECT n.*, u.completed, j.job_id, j.type FROM node n
        LEFT JOIN LATERAL (SELECT COALESCE(sum(completed), 0)::bigint AS completed FROM usage
            WHERE node_id = n.id) u ON true
        LEFT JOIN LATERAL (SELECT a.job_id, j.type FROM allocation l JOIN attempt a ON a.id = l.attempt_id
            JOIN job j ON j.id = a.job_id WHERE l.node_id = n.id ORDER BY a.claimed_at DESC LIMIT 1) j ON true
        WHERE n.kind = ANY(%(kinds)s)
            AND (n.last_seen_at > now() - make_interval(secs => %(within)s) OR j.job_id IS NOT NULL)
        ORDER BY n.id""",
        {"kinds": list(kinds), "within": seen_within_s},
    )


def capacities(tx: Tx, seen_within_s: float) -> Sequence[Row]:
    """Agents by cluster and name, with what they hold (`used_jobs` …, by usage rows) and their `held` GPUs."""
    return tx.rows(
        """SELECT n.*, u.*, ARRAY(SELECT gpu_uuid FROM gpu_hold WHERE node_id = n.id) AS held
        FROM node n CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
        WHERE n.kind = 'agent'
            AND (n.last_seen_at > now() - make_interval(secs => %(within)s) OR u.used_jobs > 0)
        ORDER BY n.cluster, n.id""",
        {"within": seen_within_s},
    )


def waiting_nodes(tx: Tx) -> Sequence[Row]:
    """Ready agents: id and free slots."""
    return tx.rows(
        """SELECT n.id, n.slots - COALESCE(sum(u.jobs), 0)::int AS free FROM node n
        LEFT JOIN usage u ON u.node_id = n.id
        WHERE n.kind = 'agent' AND n.state = 'ready' GROUP BY n.id"""
    )


def usage_drift(tx: Tx) -> Sequence[Row]:
    """Usage rows that differ from the live allocations they should sum up. Always empty, or there is a fault."""
    return tx.rows(
        """SELECT COALESCE(u.tenant_id, a.tenant_id) AS tenant_id, COALESCE(u.node_id, a.node_id) AS node_id,
            u.jobs AS counted_jobs, a.jobs AS held_jobs
        FROM usage u FULL JOIN (SELECT tenant_id, node_id, count(*) AS jobs, sum(cpus_milli) AS cpus,
            sum(memory_bytes) AS memory, sum(gpus) AS gpus, sum(gpus * gpu_memory_bytes) AS gpu_memory
            FROM allocation GROUP BY 1, 2) a ON a.tenant_id = u.tenant_id AND a.node_id = u.node_id
        WHERE (COALESCE(u.jobs, 0), COALESCE(u.cpus_milli, 0), COALESCE(u.memory_bytes, 0), COALESCE(u.gpus, 0),
            COALESCE(u.gpu_memory_bytes, 0)) IS DISTINCT FROM (COALESCE(a.jobs, 0), COALESCE(a.cpus, 0),
            COALESCE(a.memory, 0), COALESCE(a.gpus, 0), COALESCE(a.gpu_memory, 0))"""
    )
