"""Dependencies: parents locked while a child is submitted, children found and settled when a parent has ended."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx


def lock_arrays(tx: Tx, ids: Sequence[UUID], tenant_id: UUID | None = None) -> Sequence[Row]:
    """Those of `ids` that are arrays (of a tenant), held so that none ends before this transaction does.

    Rows: id, ended, completed. Arrays are locked before jobs, each in the order of their ids.
    """
    return tx.rows(
        """SELECT id, finished_at IS NOT NULL AS ended, completed = size AS completed FROM job_array
        WHERE id = ANY(%(ids)s) AND (%(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s) ORDER BY id FOR SHARE""",
        {"ids": list(ids), "tenant": tenant_id},
    )


def lock_jobs(tx: Tx, ids: Sequence[UUID], tenant_id: UUID) -> Sequence[Row]:
    """Those of `ids` that are the tenant's jobs, held so that none ends before this transaction does.

    Their ends are told from now on. Rows as `lock_arrays` gives them.
    """
    params = {"ids": list(ids), "tenant": tenant_id}
    # A mark is never taken back, so that this look needs no lock; whoever sets one must not have begun with a weaker
    # lock, for two such would wait for each other.
    marked = tx.value("SELECT COALESCE(bool_and(awaited OR state > 3), true) FROM job WHERE id = ANY(%(ids)s)", params)
    rows = tx.rows(
        f"""SELECT id, state > 3 AS ended, state = 4 AS completed, awaited FROM job
        WHERE id = ANY(%(ids)s) AND tenant_id = %(tenant)s ORDER BY id FOR {"SHARE" if marked else "NO KEY UPDATE"}""",
        params,
    )
    new = [row.id for row in rows if not row.ended and not row.awaited]
    if new:
        tx.run("UPDATE job SET awaited = true WHERE id = ANY(%(ids)s)", {"ids": new})
    return rows


def link(tx: Tx, rows: Sequence[tuple[UUID, bool, UUID, bool, int, bool | None]]) -> None:
    """Writes dependencies: child, whether it is an array, parent, whether it is one, terms, settled."""
    names = ("child", "child_is_array", "parent", "parent_is_array", "terms", "settled")
    tx.run(
        """INSERT INTO job_dependency (child_id, child_is_array, parent_id, parent_is_array, terms, settled)
        SELECT * FROM unnest(%(child)s::uuid[], %(child_is_array)s::boolean[], %(parent)s::uuid[],
            %(parent_is_array)s::boolean[], %(terms)s::smallint[], %(settled)s::boolean[])""",
        {name: [row[place] for row in rows] for place, name in enumerate(names)},
    )


def tell(tx: Tx, parents: Sequence[tuple[UUID, bool, bool]]) -> None:
    """Has the scheduler settle what waits for these ended parents: id, whether it is an array, whether it completed."""
    tx.run(
        """INSERT INTO ended_parent (parent_id, is_array, completed)
        SELECT * FROM unnest(%(ids)s::uuid[], %(arrays)s::boolean[], %(completed)s::boolean[])""",
        {"ids": [p[0] for p in parents], "arrays": [p[1] for p in parents], "completed": [p[2] for p in parents]},
    )


def ended_parents(tx: Tx, limit: int) -> Sequence[Row]:
    """Parents that ended and were not settled yet, locked: id, parent_id, is_array, completed."""
    return tx.rows(
        """SELECT id, parent_id, is_array, completed FROM ended_parent ORDER BY id LIMIT %(limit)s
        FOR UPDATE SKIP LOCKED""",
        {"limit": limit},
    )


def open_edges(tx: Tx, parents: Sequence[UUID], limit: int) -> Sequence[Row]:
    """Up to `limit` dependencies on these parents that are not settled: child_id, child_is_array, parent_id, terms."""
    return tx.rows(
        """SELECT d.child_id, d.child_is_array, d.parent_id, d.terms FROM unnest(%(parents)s::uuid[]) AS p (id)
        CROSS JOIN LATERAL (
            SELECT * FROM job_dependency WHERE parent_id = p.id AND settled IS NULL
            ORDER BY child_id LIMIT %(limit)s) d
        LIMIT %(limit)s""",
        {"parents": list(parents), "limit": limit},
    )


def lock_children(tx: Tx, jobs: Sequence[UUID], arrays: Sequence[UUID]) -> None:
    """Holds children, so that of two who settle two parents of one the second sees what the first did."""
    if arrays:
        tx.rows("SELECT 1 FROM job_array WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE", {"ids": list(arrays)})
    if jobs:
        tx.rows("SELECT 1 FROM job WHERE id = ANY(%(ids)s) ORDER BY id FOR NO KEY UPDATE", {"ids": list(jobs)})


def settle(tx: Tx, edges: Sequence[tuple[UUID, UUID, bool]]) -> None:
    """Writes of dependencies (child, parent) whether they are satisfied; what is settled already stays."""
    tx.run(
        """UPDATE job_dependency d SET settled = s.settled
        FROM unnest(%(children)s::uuid[], %(parents)s::uuid[], %(settled)s::boolean[]) AS s (child, parent, settled)
        WHERE d.child_id = s.child AND d.parent_id = s.parent AND d.settled IS NULL""",
        {
            "children": [edge[0] for edge in edges],
            "parents": [edge[1] for edge in edges],
            "settled": [edge[2] for edge in edges],
        },
    )


def free_children(tx: Tx, children: Sequence[UUID]) -> set[UUID]:
    """Those whose dependencies are all satisfied."""
    rows = tx.rows(
        """SELECT c FROM unnest(%(ids)s::uuid[]) AS c
        WHERE NOT EXISTS (SELECT 1 FROM job_dependency WHERE child_id = c AND settled IS DISTINCT FROM true)""",
        {"ids": list(children)},
    )
    return {row[0] for row in rows}


def waiting_jobs(tx: Tx, children: Sequence[UUID]) -> Sequence[Row]:
    """Those of these locked jobs that wait for their dependencies: id, key_id, queue_seq, class."""
    return tx.rows(
        "SELECT id, key_id, queue_seq, class FROM job WHERE id = ANY(%(ids)s) AND state = 0 AND waits = 1",
        {"ids": list(children)},
    )


def release_jobs(tx: Tx, ids: Sequence[UUID]) -> None:
    """Jobs wait for nothing of their own any more, except for a hold. Their keys must be held (`revive_keys`)."""
    tx.run(
        """UPDATE job SET waits = 0, ready = reason IS DISTINCT FROM 'hold',
            reason = CASE WHEN reason = 'hold' THEN reason ELSE 'new' END, ready_since = clock_timestamp()
        WHERE id = ANY(%(ids)s) AND state = 0 AND waits = 1""",
        {"ids": list(ids)},
    )


def cancel_jobs(tx: Tx, messages: dict[UUID, str]) -> None:
    """Ends jobs that can never start, each with its message. They are locked and pending."""
    tx.run(
        """UPDATE job j SET state = 6, ready = false, reason = NULL, not_before = NULL, stop_cause = 4,
            stop_by = 'dependency', stop_reason = m.message, message = m.message, finished_at = clock_timestamp()
        FROM unnest(%(ids)s::uuid[], %(messages)s::text[]) AS m (id, message) WHERE j.id = m.id AND j.state = 0""",
        {"ids": list(messages), "messages": list(messages.values())},
    )


def forget_ended(tx: Tx, ids: Sequence[int]) -> int:
    """Drops what was told of parents for which nothing waits any more; how many."""
    return tx.run(
        """DELETE FROM ended_parent e WHERE id = ANY(%(ids)s) AND NOT EXISTS (
            SELECT 1 FROM job_dependency WHERE parent_id = e.parent_id AND settled IS NULL)""",
        {"ids": list(ids)},
    )


def drop_ended(tx: Tx, ids: Sequence[int]) -> None:
    """Drops what was told of parents that have not ended after all."""
    tx.run("DELETE FROM ended_parent WHERE id = ANY(%(ids)s)", {"ids": list(ids)})


def parents_of(tx: Tx, child_id: UUID, limit: int) -> Sequence[Row]:
    """What a job or an array depends on, with each parent's state now: parent_id, parent_is_array, terms, settled,
    state (of a job, None when it is forgotten), finished (of an array)."""
    return tx.rows(
        """SELECT d.parent_id, d.parent_is_array, d.terms, d.settled, j.state, CASE WHEN a.id IS NOT NULL
            THEN a.finished_at IS NOT NULL END AS finished
        FROM job_dependency d LEFT JOIN job j ON NOT d.parent_is_array AND j.id = d.parent_id
        LEFT JOIN job_array a ON d.parent_is_array AND a.id = d.parent_id
        WHERE d.child_id = %(id)s ORDER BY d.settled IS NOT NULL, d.parent_id LIMIT %(limit)s""",
        {"id": child_id, "limit": limit},
    )
