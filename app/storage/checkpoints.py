"""When running attempts last saved their work. A checkpoint of one member is one of its gang."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from app.storage import gangs
from app.storage.database import Tx


def note(tx: Tx, ages_s: Mapping[UUID, float]) -> int:
    """Notes how many seconds ago live attempts saved, never before they started; how many rows that changed.

    Their jobs are locked till the end of the transaction.
    """
    # Who starts or ends attempts has locked their jobs first: without that, each could wait for what the other wrote.
    gangs.lock_jobs(tx, list(ages_s))
    return tx.run(
        """WITH told AS MATERIALIZED (
            SELECT a.id, a.leader_id, c.age_s FROM unnest(%(ids)s::uuid[], %(ages)s::float8[]) AS c (id, age_s)
            JOIN attempt a ON a.id = c.id WHERE a.outcome IS NULL
        ), meant AS (
            SELECT id, age_s FROM told
            UNION ALL SELECT m.id, t.age_s FROM told t JOIN attempt m ON m.leader_id = t.leader_id AND m.id <> t.id
        ), latest AS MATERIALIZED (SELECT id, min(age_s) AS age_s FROM meant GROUP BY id)
        UPDATE attempt a SET checkpoint_at = GREATEST(a.checkpoint_at, a.started_at,
            clock_timestamp() - make_interval(secs => l.age_s))
        FROM latest l WHERE a.id = l.id AND a.outcome IS NULL""",
        {"ids": list(ages_s), "ages": [min(age, 1e9) for age in ages_s.values()]},
    )


def current(tx: Tx, job_id: UUID) -> UUID | None:
    """The running attempt of a job, of a gang its leader's."""
    attempt: UUID | None = tx.value("SELECT attempt_id FROM job WHERE id = %(id)s AND state IN (2, 3)", {"id": job_id})
    return attempt
