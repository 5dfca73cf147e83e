"""Log chunks. A chunk is a stretch of an attempt's framed output; its position makes a repeat harmless."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx, arrays


def insert_chunks(tx: Tx, chunks: Sequence[Mapping[str, Any]]) -> int:
    """Writes chunks; one that is there already is left as it is."""
    if not chunks:
        return 0
    params = arrays(chunks, "log_day", "attempt_id", "position", "length", "codec", "data")
    return tx.run(
        """INSERT INTO log_chunk (log_day, attempt_id, position, length, codec, data)
        SELECT * FROM unnest(%(log_day)s::date[], %(attempt_id)s::uuid[], %(position)s::bigint[], %(length)s::int[],
            %(codec)s::smallint[], %(data)s::bytea[]) ON CONFLICT DO NOTHING""",
        params,
    )


def chunk_end(tx: Tx, attempt_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Up to which position the output of each attempt is stored."""
    rows = tx.rows(
        """SELECT a.id, COALESCE((SELECT c.position + c.length FROM log_chunk c WHERE c.log_day = a.log_day
            AND c.attempt_id = a.id AND c.member = 0 ORDER BY c.position DESC LIMIT 1), 0) AS stored
        FROM attempt a WHERE a.id = ANY(%(ids)s)""",
        {"ids": list(attempt_ids)},
    )
    return {row.id: row.stored for row in rows}


def logged_attempt(tx: Tx, job_id: UUID, attempt: int | None, member: int = 0) -> Row | None:
    """A job's tenant_id and state with one attempt (None: the latest), whose columns are null where there is none.

    Of a gang's attempt it is that of the member.
    """
    return tx.row(
        """SELECT j.tenant_id, j.state, a.id, a.number, a.log_day, a.outcome, a.ended_at, a.output_bytes,
            a.truncated_bytes, a.log_gap
        FROM job j LEFT JOIN attempt a ON a.job_id = j.id AND a.number = COALESCE(%(attempt)s, j.attempt)
            AND a.member = %(member)s
        WHERE j.id = %(id)s""",
        {"id": job_id, "attempt": attempt, "member": member},
    )


def members_of(tx: Tx, job_id: UUID) -> int:
    """How many members each attempt of the job has."""
    return int(tx.value("SELECT members FROM job_spec WHERE job_id = %(id)s", {"id": job_id}))


def read_chunks(tx: Tx, log_day: Any, attempt_id: UUID, after: int, limit: int) -> Sequence[Row]:
    """Chunks from position `after` on, in order: position, length, codec, at, data."""
    return tx.rows(
        """SELECT position, length, codec, at, data FROM log_chunk
        WHERE log_day = %(day)s AND attempt_id = %(id)s AND member = 0 AND position >= %(after)s
        ORDER BY position LIMIT %(limit)s""",
        {"day": log_day, "id": attempt_id, "after": after, "limit": limit},
    )


def read_chunk_before(tx: Tx, log_day: Any, attempt_id: UUID, before: int) -> Row | None:
    """The last chunk that begins before position `before`."""
    return tx.row(
        """SELECT position, length, codec, data FROM log_chunk
        WHERE log_day = %(day)s AND attempt_id = %(id)s AND member = 0 AND position < %(before)s
        ORDER BY position DESC LIMIT 1""",
        {"day": log_day, "id": attempt_id, "before": before},
    )
