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


def other_owner(tx: Tx, node_id: str, gpu_uuids: Sequence[str], live_s: float) -> Row | None:
    """Which other agent that was seen within `live_s` offers one of these GPUs, and which; None when nobody does.

    Waits until the transactions of others that asked the same have ended: of two at once the second sees the first.
    """
    tx.run("SELECT pg_advisory_xact_lock(hashtextextended('gpus_of_nodes', 72))")
    return tx.row(
        """SELECT n.id, g ->> 'uuid' AS uuid, extract(epoch FROM clock_timestamp() - n.last_seen_at)::float AS silent_s
        FROM node n, jsonb_array_elements(n.gpus) g
        WHERE n.id <> %(id)s AND n.kind = 'agent' AND g ->> 'uuid' = ANY(%(uuids)s)
            AND n.last_seen_at > clock_timestamp() - make_interval(secs => %(live_s)s)
        ORDER BY n.id, 2 LIMIT 1""",
        {"id": node_id, "uuids": list(gpu_uuids), "live_s": live_s},
    )


def touch_external(tx: Tx, node_id: str, ip: str | None, incarnation: UUID) -> None:
    """Notes an external executor; unknown ones are added with room for anything."""
    tx.run(
        """INSERT INTO node (id, kind, incarnation, protocol, capabilities, slots, cpus_milli, memory_bytes, ip)
        VALUES (%(id)s, 'external', %(inc)s, 1, '{process}', 1000000, 1000000000, 9000000000000000, %(ip)s)
        ON CONFLICT (id) DO UPDATE SET last_seen_at = now(), ip = COALESCE(EXCLUDED.ip, node.ip),
            state = CASE WHEN node.state = 'draining' THEN node.state ELSE 'ready' END
        WHERE node.kind = 'external'""",
        {"id": node_id, "inc": incarnation, "ip": ip},
    )


def see(tx: Tx, node_id: str, incarnation: UUID, gpus: Sequence[Mapping[str, Any]] | None = None) -> Row | None:
    """Notes a sign of life, and `gpus` if given; state and drain, or None when a newer incarnation has registered."""
    return tx.row(
        """UPDATE node SET last_seen_at = now(), state = CASE WHEN state = 'offline' THEN 'ready' ELSE state END,
            gpus = COALESCE(%(gpus)s::jsonb, gpus)
        WHERE id = %(id)s AND incarnation = %(inc)s
        RETURNING state, drain_reason, drain_by, drain_deadline,
            COALESCE(drain_deadline <= clock_timestamp(), false) AS drain_over""",
        {"id": node_id, "inc": incarnation, "gpus": None if gpus is None else Json(list(gpus))},
    )


def drain(tx: Tx, node_id: str, reason: str | None, by: str, deadline_s: float | None) -> bool:
    """The node takes no jobs from now on; whether it exists. Said again, it keeps the time it began.

    Without a reason (None) it keeps that too.
    """
    return (
        tx.run(
            """UPDATE node SET drain_at = CASE WHEN state = 'draining' AND drain_at IS NOT NULL THEN drain_at
                    ELSE clock_timestamp() END,
                drain_reason = COALESCE(%(reason)s, CASE WHEN state = 'draining' THEN drain_reason END, ''),
                state = 'draining', drain_by = %(by)s,
                drain_deadline = clock_timestamp() + make_interval(secs => %(deadline)s::float8)
            WHERE id = %(id)s""",
            {"id": node_id, "reason": reason, "by": by, "deadline": deadline_s},
        )
        > 0
    )


def lock_drain(tx: Tx, node_id: str, incarnation: UUID) -> str | None:
    """Who drains a node, locked; empty when nobody does, None when a newer incarnation has its name."""
    by = tx.value(
        """SELECT CASE WHEN state = 'draining' THEN COALESCE(NULLIF(drain_by, ''), '?') ELSE '' END FROM node
        WHERE id = %(id)s AND incarnation = %(inc)s FOR NO KEY UPDATE""",
        {"id": node_id, "inc": incarnation},
    )
    return None if by is None else str(by)


def resume(tx: Tx, node_id: str, silent_s: float) -> bool:
    """Ends a drain, if there is one; whether the node exists. One that has been silent for so long is offline then."""
    return (
        tx.run(
            """UPDATE node SET state = CASE WHEN state <> 'draining' THEN state
                    WHEN last_seen_at < now() - make_interval(secs => %(silent)s) THEN 'offline' ELSE 'ready' END,
                drain_reason = NULL, drain_by = NULL, drain_at = NULL, drain_deadline = NULL
            WHERE id = %(id)s""",
            {"id": node_id, "silent": silent_s},
        )
        > 0
    )


def stop_overdue(tx: Tx, node_id: str | None, cause: int, limit: int) -> set[str]:
    """Flags active jobs whose node (or any) should be empty by now, up to `limit`; the nodes that run any of them."""
    rows = tx.rows(
        """WITH late AS MATERIALIZED (
            SELECT j.id, n.drain_by, n.drain_reason FROM node n
            JOIN allocation l ON l.node_id = n.id JOIN attempt a ON a.id = l.attempt_id
            JOIN job j ON j.id = a.job_id AND j.attempt_id = COALESCE(a.leader_id, a.id)
            WHERE n.state = 'draining' AND n.drain_deadline <= clock_timestamp()
                AND (%(node)s::text IS NULL OR n.id = %(node)s) AND j.state IN (1, 2)
            ORDER BY j.id LIMIT %(limit)s FOR NO KEY UPDATE OF j SKIP LOCKED)
        UPDATE job SET state = 3, stop_cause = %(cause)s, stop_by = late.drain_by,
            stop_reason = 'its node is drained' || COALESCE(': ' || NULLIF(late.drain_reason, ''), '')
        FROM late WHERE job.id = late.id AND job.state IN (1, 2) RETURNING ARRAY(SELECT l.node_id
            FROM allocation l JOIN attempt a ON a.id = l.attempt_id WHERE a.job_id = job.id) AS nodes""",
        {"node": node_id, "cause": cause, "limit": limit},
    )
    return {node for row in rows for node in row.nodes}


def set_labels(tx: Tx, node_id: str, put: Mapping[str, str], remove: Sequence[str]) -> Row | None:
    """Changes the operators' labels of a node; what they are then, or None when there is no such node."""
    return tx.row(
        """UPDATE node SET operator_labels = (operator_labels || %(put)s::jsonb) - %(remove)s::text[]
        WHERE id = %(id)s RETURNING operator_labels""",
        {"id": node_id, "put": Json(dict(put)), "remove": list(remove)},
    )


def take_gpu_out(tx: Tx, node_id: str, uuid: str, reason: str, by: str) -> None:
    """No claim gives the GPU away until it is put in again."""
    tx.run(
        """UPDATE node SET gpus_out = gpus_out || jsonb_build_object(%(uuid)s::text,
            jsonb_build_object('reason', %(reason)s::text, 'by', %(by)s::text,
                'at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')))
        WHERE id = %(id)s""",
        {"id": node_id, "uuid": uuid, "reason": reason, "by": by},
    )


def share_gpu(tx: Tx, node_id: str, uuid: str, sharing: bool | None) -> None:
    """What an operator says of sharing the GPU; None: nothing."""
    tx.run(
        """UPDATE node SET gpu_sharing = CASE WHEN %(sharing)s::bool IS NULL THEN gpu_sharing - %(uuid)s::text
            ELSE gpu_sharing || jsonb_build_object(%(uuid)s::text, %(sharing)s::bool) END WHERE id = %(id)s""",
        {"id": node_id, "uuid": uuid, "sharing": sharing},
    )


def put_gpu_in(tx: Tx, node_id: str, uuid: str) -> None:
    """Takes back what an operator said about the GPU."""
    tx.run("UPDATE node SET gpus_out = gpus_out - %(uuid)s::text WHERE id = %(id)s", {"id": node_id, "uuid": uuid})


def lock_node(tx: Tx, node_id: str) -> Row | None:
    """A node's row, locked."""
    return tx.row("SELECT * FROM node WHERE id = %(id)s FOR NO KEY UPDATE", {"id": node_id})


def lock_gone(tx: Tx, silent_s: float, limit: int) -> list[str]:
    """Nodes silent for so long whose rows nobody else uses at the moment, locked; at most `limit` names."""
    rows = tx.rows(
        """SELECT id FROM node WHERE last_seen_at < now() - make_interval(secs => %(silent)s)
        ORDER BY id LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED""",
        {"silent": silent_s, "limit": limit},
    )
    return [row.id for row in rows]


def forget(tx: Tx, names: Sequence[str]) -> list[str]:
    """Removes those of these nodes, whose rows the caller has locked, that hold nothing; their names."""
    gone = [
        row.id
        for row in tx.rows(
            """DELETE FROM node n WHERE n.id = ANY(%(names)s)
                AND NOT EXISTS (SELECT 1 FROM allocation a WHERE a.node_id = n.id) RETURNING n.id""",
            {"names": list(names)},
        )
    ]
    for table in ("usage", "reservation", "retry_elsewhere"):
        tx.run(f"DELETE FROM {table} WHERE node_id = ANY(%(gone)s)", {"gone": gone})
    return gone


def mark_offline(tx: Tx, silent_s: float) -> list[str]:
    """Ready nodes silent for so long become offline; their names. One that drains stays so till somebody ends it."""
    rows = tx.rows(
        """UPDATE node SET state = 'offline' WHERE state = 'ready'
        AND last_seen_at < now() - make_interval(secs => %(silent)s) RETURNING id""",
        {"silent": silent_s},
    )
    return [row[0] for row in rows]


def list_nodes(tx: Tx, kinds: Sequence[str], seen_within_s: float) -> Sequence[Row]:
    """Nodes seen lately with their latest active job and how many attempts have completed on them."""
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


def shown(tx: Tx, node_id: str | None, external_within_s: float) -> Sequence[Row]:
    """Nodes (or the one) with what they hold: used_jobs, used_cpus, used_memory, silent_s, and
    `held` ({GPU: {jobs, bytes}}; bytes is null when one job has the GPU to itself).

    Of executors outside only those heard lately or holding a job: each that ever asked for one has left a row.
    """
    return tx.rows(
        """SELECT n.*, u.*, extract(epoch FROM clock_timestamp() - n.last_seen_at)::float AS silent_s,
            COALESCE((SELECT jsonb_object_agg(g.uuid, g.held) FROM (
                SELECT h.gpu_uuid AS uuid, jsonb_build_object('jobs', jsonb_agg(a.job_id ORDER BY a.claimed_at, a.id),
                    'bytes', sum(h.memory_bytes)) AS held
                FROM gpu_hold h JOIN attempt a ON a.id = h.attempt_id WHERE h.node_id = n.id GROUP BY 1) g), '{}')
                AS held
        FROM node n CROSS JOIN LATERAL (
            SELECT COALESCE(sum(jobs), 0)::bigint AS used_jobs, COALESCE(sum(cpus_milli), 0)::bigint AS used_cpus,
                COALESCE(sum(memory_bytes), 0)::bigint AS used_memory FROM usage WHERE node_id = n.id) u
        WHERE CASE WHEN %(id)s::text IS NOT NULL THEN n.id = %(id)s ELSE n.kind = 'agent' OR used_jobs > 0
            OR n.last_seen_at > clock_timestamp() - make_interval(secs => %(within)s) END
        ORDER BY n.cluster, n.id""",
        {"id": node_id, "within": external_within_s},
    )


def jobs_on(tx: Tx, node_id: str, limit: int) -> Sequence[Row]:
    """Active jobs of a node, the oldest first: id, type, state, stop_cause, tenant, claimed_at, and their share."""
    return tx.rows(
        """SELECT j.id, j.type, j.state, j.stop_cause, t.name AS tenant, a.claimed_at, l.cpus_milli, l.memory_bytes,
            l.gpu_uuids
        FROM allocation l JOIN attempt a ON a.id = l.attempt_id JOIN job j ON j.id = a.job_id
        JOIN tenant t ON t.id = j.tenant_id WHERE l.node_id = %(id)s ORDER BY a.claimed_at, j.id LIMIT %(limit)s""",
        {"id": node_id, "limit": limit},
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
