"""Attempts: started, ended, and what they held given back; always guarded by the fence (job, attempt, token)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx, records


def lock_for_ending(
    tx: Tx, attempt_ids: Sequence[UUID], skip_locked: bool = False, node_id: str | None = None
) -> Sequence[Row]:
    """The jobs of these attempts, locked in the order of their ids, with what a verdict needs.

    For a transaction that claims for `node_id` afterwards, that node is locked before them, as the lock order wants it.
    """
    return tx.rows(
        "SELECT * FROM lock_ends(%(ids)s::uuid[], %(node)s, %(free)s)",
        {"ids": list(attempt_ids), "node": node_id, "free": skip_locked},
    )


def write_endings(tx: Tx, endings: Sequence[Mapping[str, Any]]) -> None:
    """Ends attempts, moves their jobs on, gives back all they held. The jobs must be locked, the fence checked."""
    tx.run("SELECT end_attempts(%(ends)s)", {"ends": records(endings)})


def write_images(tx: Tx, digests: Mapping[UUID, str]) -> None:
    """Notes which image each of these attempts has run, by its registry's digest."""
    tx.run(
        """UPDATE attempt a SET image_digest = i.digest
        FROM unnest(%(ids)s::uuid[], %(digests)s::text[]) AS i (id, digest) WHERE a.id = i.id""",
        {"ids": list(digests), "digests": list(digests.values())},
    )


def mark_started(tx: Tx, starts: Sequence[Mapping[str, Any]]) -> set[UUID]:
    """Starting jobs become running under the fence; the attempts that were still current.

    A job that is being stopped stays so, and only its attempt learns when it started.
    """
    rows = tx.rows("SELECT * FROM start_attempts(%(starts)s)", {"starts": records(starts)})
    return {row[0] for row in rows}


def describe(tx: Tx, attempt_ids: Sequence[UUID]) -> Sequence[Row]:
    """Attempts with their job's type, tenant, runner, number of members, and `gpu_slice_bytes` if they share a GPU."""
    return tx.rows(
        """SELECT a.id, a.log_day, a.claimed_at, a.gpu_uuids, a.member, a.leader_id, a.port, j.type, j.tenant_id,
            s.runner, s.members,
            (SELECT sum(memory_bytes)::bigint FROM gpu_hold h WHERE h.attempt_id = a.id) AS gpu_slice_bytes
        FROM attempt a
        JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id WHERE a.id = ANY(%(ids)s)""",
        {"ids": list(attempt_ids)},
    )
