"""Members of gangs: read together, marked as prepared, told that their gang is broken. Lock their job first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx, records


def lock_jobs(tx: Tx, attempt_ids: Sequence[UUID]) -> None:
    """Locks the jobs of these attempts in the order of their ids, till the end of the transaction."""
    tx.rows(
        """SELECT id FROM job WHERE id = ANY(ARRAY(SELECT job_id FROM attempt WHERE id = ANY(%(ids)s)))
        ORDER BY id FOR NO KEY UPDATE""",
        {"ids": list(attempt_ids)},
    )


def members_of(tx: Tx, leaders: Sequence[UUID]) -> Sequence[Row]:
    """All members of these gangs by gang and member, as they are now, with `job_id`, `current` and `waited_s`.

    `waited_s` is how long the first of the gang that was prepared has waited, by this server's clock.
    """
    return tx.rows(
        """SELECT a.id, a.job_id, a.leader_id, a.member, a.node_id, a.node_ip, a.address, a.port, a.prepared_at,
            a.started_at, a.ended_at, a.outcome, a.exit_code, a.signal, a.reason, l.broken,
            j.attempt_id = a.leader_id AS current, j.stop_cause,
            COALESCE(extract(epoch FROM clock_timestamp() - min(a.prepared_at) OVER (PARTITION BY a.leader_id)), 0
                )::float AS waited_s
        FROM attempt a JOIN attempt l ON l.id = a.leader_id JOIN job j ON j.id = a.job_id
        WHERE a.leader_id = ANY(%(leaders)s) ORDER BY a.leader_id, a.member""",
        {"leaders": list(leaders)},
    )


def mark_prepared(tx: Tx, prepared: Sequence[Mapping[str, Any]]) -> set[UUID]:
    """Notes which members are ready to start, and where they are reached; those whose gang still wants them."""
    rows = tx.rows(
        """UPDATE attempt a SET prepared_at = COALESCE(a.prepared_at, clock_timestamp()), address = p.address,
            port = p.port
        FROM json_to_recordset(%(prepared)s) AS p (attempt_id uuid, token uuid, address text, port integer),
            attempt l, job j
        WHERE a.id = p.attempt_id AND a.token = p.token AND a.outcome IS NULL AND l.id = a.leader_id
            AND l.broken IS NULL AND j.id = a.job_id AND j.attempt_id = a.leader_id RETURNING a.id""",
        {"prepared": records(prepared)},
    )
    return {row[0] for row in rows}


def break_gang(tx: Tx, leader_id: UUID, why: str) -> None:
    """Says why all members are to be ended; what was said first stays."""
    tx.run("UPDATE attempt SET broken = %(why)s WHERE id = %(id)s AND broken IS NULL", {"id": leader_id, "why": why})


def count_lost_node(tx: Tx, job_id: UUID, node_id: str) -> None:
    """Notes a node that was lost while it ran a member of this job."""
    tx.run(
        """UPDATE job SET lost_nodes = lost_nodes || %(node)s::text
        WHERE id = %(id)s AND %(node)s::text <> ALL(lost_nodes)""",
        {"id": job_id, "node": node_id},
    )


def nodes_of(tx: Tx, leaders: Sequence[UUID]) -> list[str]:
    """The nodes that hold members of these gangs, or the attempts of plain jobs, in order."""
    return [
        row[0]
        for row in tx.rows(
            """SELECT DISTINCT l.node_id FROM allocation l WHERE l.attempt_id = ANY(%(ids)s) OR l.attempt_id = ANY(
                ARRAY(SELECT id FROM attempt WHERE leader_id = ANY(%(ids)s))) ORDER BY 1""",
            {"ids": list(leaders)},
        )
    ]
