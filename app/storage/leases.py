"""Leases: renewed by listed tokens, expired by database time. Heartbeats touch no indexed column."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx


def renew(tx: Tx, node_id: str, attempts: Sequence[UUID], tokens: Sequence[UUID], lease_s: float) -> set[UUID]:
    """Extends the leases that really are held with these tokens; the attempts that were extended."""
    rows = tx.rows(
        "SELECT * FROM renew_leases(%(node)s, %(attempts)s::uuid[], %(tokens)s::uuid[], %(lease)s)",
        {"node": node_id, "attempts": list(attempts), "tokens": list(tokens), "lease": lease_s},
    )
    return {row[0] for row in rows}


def held_by(tx: Tx, node_id: str) -> Sequence[Row]:
    """Every lease of a node: attempt_id, token, delivered, job_id, number, member, stop_cause, `broken` (its gang) …"""
    return tx.rows(
        """SELECT l.attempt_id, l.token, l.delivered, l.expires_at, a.job_id, a.number, a.started_at, j.state,
            j.stop_cause, j.attempt_id AS current, s.grace_s, a.member, a.leader_id, b.broken
        FROM lease l JOIN attempt a ON a.id = l.attempt_id JOIN job j ON j.id = a.job_id
        JOIN job_spec s ON s.job_id = j.id LEFT JOIN attempt b ON b.id = a.leader_id WHERE l.node_id = %(node)s""",
        {"node": node_id},
    )


def census(tx: Tx) -> Row:
    """How many leases live and how many are over, and for how long this database has been up: (live, expired, up_s)."""
    return tx.row(
        """SELECT count(*) AS live, count(*) FILTER (WHERE expires_at < now()) AS expired,
            extract(epoch FROM now() - pg_postmaster_start_time())::float AS up_s FROM lease"""
    )


def expired(tx: Tx, limit: int) -> Sequence[Row]:
    """Attempts whose lease is over: attempt_id, job_id, oldest first. Takes no lock: `lock_expired` checks again."""
    return tx.rows(
        """SELECT l.attempt_id, a.job_id FROM lease l JOIN attempt a ON a.id = l.attempt_id
        WHERE l.expires_at < now() ORDER BY l.expires_at LIMIT %(limit)s""",
        {"limit": limit},
    )


def lock_expired(tx: Tx, attempts: Sequence[UUID]) -> set[UUID]:
    """Locks those of `attempts` whose lease is still over; one that is just being renewed is skipped."""
    rows = tx.rows(
        """SELECT attempt_id FROM lease WHERE attempt_id = ANY(%(attempts)s) AND expires_at < clock_timestamp()
        ORDER BY attempt_id FOR UPDATE SKIP LOCKED""",
        {"attempts": list(attempts)},
    )
    return {row[0] for row in rows}
