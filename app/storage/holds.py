"""Statements about held jobs. The job's row must be locked; a key must be revived before its job becomes ready."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx


def hold_of(tx: Tx, job_id: UUID) -> Row | None:
    """Who holds a job, if anybody does."""
    return tx.row("SELECT * FROM job_hold WHERE job_id = %(id)s", {"id": job_id})


def insert(tx: Tx, job_ids: Sequence[UUID], by: str, operator: bool, reason: str, message: str) -> None:
    """Notes a hold of each of these jobs with what it is without it, and holds those that are pending.

    Of an active one the note keeps what it is to say when it is held.
    """
    tx.run(
        """WITH noted AS (
            INSERT INTO job_hold AS h (job_id, held_by, operator, reason, was_reason, was_message, was_ready,
                was_not_before)
            SELECT id, %(by)s, %(operator)s, %(reason)s, COALESCE(job.reason, 'requeued'),
                CASE WHEN state = 0 THEN message ELSE %(message)s END, ready, not_before
            FROM job WHERE id = ANY(%(ids)s) ORDER BY id
            ON CONFLICT (job_id) DO UPDATE SET held_by = EXCLUDED.held_by, operator = EXCLUDED.operator,
                reason = EXCLUDED.reason, since = EXCLUDED.since, was_reason = EXCLUDED.was_reason,
                was_message = EXCLUDED.was_message, was_ready = EXCLUDED.was_ready,
                was_not_before = EXCLUDED.was_not_before)
        UPDATE job SET ready = false, reason = 'hold', message = %(message)s, not_before = NULL
        WHERE id = ANY(%(ids)s) AND state = 0""",
        {"ids": list(job_ids), "by": by, "operator": operator, "reason": reason, "message": message},
    )


def take_over(tx: Tx, job_id: UUID, by: str, operator: bool, reason: str, message: str) -> None:
    """The hold is another's from now on; what the job was before it stays noted."""
    tx.run(
        """WITH mine AS (UPDATE job_hold SET held_by = %(by)s, operator = %(operator)s, reason = %(reason)s,
            since = clock_timestamp() WHERE job_id = %(id)s)
        UPDATE job SET message = %(message)s WHERE id = %(id)s AND state = 0""",
        {"id": job_id, "by": by, "operator": operator, "reason": reason, "message": message},
    )


def hold_again(tx: Tx, job_ids: Sequence[UUID]) -> set[UUID]:
    """Holds those of these jobs, which have just become pending again, that are to be held then; which they are."""
    rows = tx.rows(
        """WITH told AS (
            SELECT j.id, j.reason, j.message, j.ready, j.not_before, h.was_message AS says
            FROM job j JOIN job_hold h ON h.job_id = j.id WHERE j.id = ANY(%(ids)s) AND j.state = 0 ORDER BY j.id
        ), noted AS (
            UPDATE job_hold h SET was_reason = told.reason, was_message = told.message, was_ready = told.ready,
                was_not_before = told.not_before, since = clock_timestamp() FROM told WHERE h.job_id = told.id)
        UPDATE job SET ready = false, reason = 'hold', not_before = NULL, message = told.says
        FROM told WHERE job.id = told.id RETURNING job.id""",
        {"ids": list(job_ids)},
    )
    return {row[0] for row in rows}


def release(tx: Tx, job_id: UUID) -> None:
    """The job is again what it was before it was held, as far as that is so: a backoff, what it depends on and its
    array's turn may have passed meanwhile. It is ready when it waits for none of them."""
    tx.run(
        """WITH gone AS (DELETE FROM job_hold WHERE job_id = %(id)s RETURNING *), was AS (
            SELECT was_reason, was_message, was_ready OR was_not_before <= clock_timestamp() AS is_ready, was_not_before
            FROM gone UNION ALL SELECT 'new', '', true, NULL WHERE NOT EXISTS (SELECT 1 FROM gone))
        UPDATE job SET message = was.was_message,
            reason = CASE WHEN waits = 1 THEN 'dependency' WHEN waits = 2 THEN 'array'
                WHEN was.was_reason IN ('dependency', 'array') THEN 'new' ELSE was.was_reason END,
            ready = waits = 0 AND (was.was_reason IN ('dependency', 'array') OR COALESCE(was.is_ready, false)),
            not_before = CASE WHEN NOT COALESCE(was.is_ready, false) THEN was.was_not_before END,
            ready_since = clock_timestamp()
        FROM was WHERE job.id = %(id)s AND job.state = 0""",
        {"id": job_id},
    )


def forget(tx: Tx, job_id: UUID) -> None:
    """A hold that was to come does not."""
    tx.run("DELETE FROM job_hold WHERE job_id = %(id)s", {"id": job_id})
