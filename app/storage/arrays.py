"""Arrays: made, turned into jobs a stretch at a time, counted, listed. Whoever changes an array has locked its row.

Arrays are locked before jobs. Only who has an array locked lets more of its jobs start; an end passes its own turn on
without that lock (the function give_turns, called by the trigger on job).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Json, Row, Tx
from app.storage.jobs import LISTED

_SPEC = """runner text, binary_url text, binary_sha256 text, image text, script text, command jsonb, arguments jsonb,
    environment jsonb, hard_limits boolean, cpus_milli bigint, memory_bytes bigint, time_limit_s float8, grace_s float8,
    max_retries int, backoff_s float8, backoff_multiplier float8, asked jsonb, config jsonb, members smallint,
    preemptible boolean"""
_SPEC_NAMES = ", ".join(column.split()[0] for column in _SPEC.split(","))
_JOB_NAMES = "id, tenant_id, key_id, class, priority, contract, type"
_COUNTS = ("pending", "active", "completed", "failed", "cancelled")
_ROW = """a.id, a.tenant_id, a.key_id, a.contract, a.type, a.class, a.size, a.max_parallel, a.unmade, a.again,
    a.skipped, a.waits, a.message, a.stop_by, a.stop_reason, a.created_at, a.finished_at"""
_NOW = f"""SELECT {_ROW}, {", ".join(f"a.{name} + COALESCE(d.{name}, 0) AS {name}" for name in _COUNTS)}
    FROM job_array a LEFT JOIN LATERAL (
        SELECT {", ".join(f"sum({name})::integer AS {name}" for name in _COUNTS)} FROM array_delta
        WHERE array_id = a.id) d ON true"""


def make(tx: Tx, array: Mapping[str, Any]) -> Any:
    """Writes an array of which nothing is a job yet; when it was made. `template` is a row of insert_jobs."""
    return tx.value(
        """INSERT INTO job_array (id, tenant_id, key_id, contract, type, class, size, max_parallel, template, todo,
            unmade, waits)
        VALUES (%(id)s, %(tenant_id)s, %(key_id)s, %(contract)s, %(type)s, %(class)s, %(size)s, %(max_parallel)s,
            %(template)s, int4multirange(int4range(0, %(size)s)), %(size)s, %(waits)s) RETURNING created_at""",
        {**array, "template": Json(array["template"])},
    )


def lock(tx: Tx, array_id: UUID, wait: bool = True) -> Row | None:
    """The array's row, locked; None when there is none, or when others have it and nobody shall `wait`."""
    skip = "" if wait else "SKIP LOCKED"
    return tx.row(
        f"SELECT {_ROW} FROM job_array a WHERE a.id = %(id)s FOR NO KEY UPDATE {skip}",
        {"id": array_id},
    )


def now(tx: Tx, array_id: UUID) -> Row | None:
    """The array with exact counts of this moment; None when there is none."""
    return tx.row(f"{_NOW} WHERE a.id = %(id)s", {"id": array_id})


def of_tenant(tx: Tx, tenant_id: UUID, limit: int, offset: int) -> Sequence[Row]:
    """A tenant's arrays with their counts, newest first."""
    return tx.rows(
        f"""{_NOW} WHERE a.tenant_id = %(tenant)s ORDER BY a.id DESC LIMIT %(limit)s OFFSET %(offset)s""",
        {"tenant": tenant_id, "limit": limit, "offset": offset},
    )


def changed(tx: Tx, limit: int) -> list[UUID]:
    """Arrays in which something changed since they were last looked at."""
    rows = tx.rows(
        """WITH RECURSIVE walk AS (
            (SELECT array_id FROM array_delta ORDER BY array_id LIMIT 1)
            UNION ALL
            SELECT n.array_id FROM walk w CROSS JOIN LATERAL (
                SELECT array_id FROM array_delta WHERE array_id > w.array_id ORDER BY array_id LIMIT 1) n
        ) SELECT array_id FROM walk LIMIT %(limit)s""",
        {"limit": limit},
    )
    return [row[0] for row in rows]


def touch(tx: Tx, array_ids: Sequence[UUID]) -> None:
    """Has the scheduler look at these arrays."""
    tx.run("INSERT INTO array_delta (array_id) SELECT unnest(%(ids)s::uuid[])", {"ids": list(array_ids)})


def fold(tx: Tx, array_id: UUID) -> Row:
    """Adds up what changed; the array's row as it is then, with its counts. The array is locked."""
    sums = ", ".join(f"COALESCE(sum({name}), 0)::integer AS {name}" for name in _COUNTS)
    sets = ", ".join(f"{name} = a.{name} + s.{name}" for name in _COUNTS)
    return tx.row(
        f"""WITH gone AS (DELETE FROM array_delta WHERE array_id = %(id)s RETURNING *), s AS (SELECT {sums} FROM gone)
        UPDATE job_array a SET {sets} FROM s WHERE a.id = %(id)s
        RETURNING {_ROW}, a.pending, a.active, a.completed, a.failed, a.cancelled""",
        {"id": array_id},
    )


def expand(tx: Tx, array_id: UUID, ids: Sequence[UUID], again: bool) -> int:
    """Turns the least indices that are to do into jobs with these ids, in order; how many there were.

    With `again`, an index may have a job that failed, which is replaced. The array is locked, its key held and live.
    """
    picked = tx.rows(
        """SELECT i FROM job_array a CROSS JOIN LATERAL unnest(a.todo) AS r
        CROSS JOIN LATERAL generate_series(lower(r), LEAST(upper(r), lower(r) + %(n)s) - 1) AS i
        WHERE a.id = %(id)s LIMIT %(n)s""",
        {"id": array_id, "n": len(ids)},
    )
    indexes = [row[0] for row in picked]
    if not indexes:
        return 0
    params = {"id": array_id, "ids": list(ids[: len(indexes)]), "indexes": indexes}
    replaced = _replace(tx, params) if again else 0
    tx.run(
        f"""WITH asked AS MATERIALIZED (
            SELECT n.id, n.index, a.id AS array_id, a.tenant_id, a.size, a.max_parallel, r.*
            FROM job_array a CROSS JOIN LATERAL jsonb_to_record(a.template) AS r (key_id bigint, class smallint,
                priority int, contract text, type text, {_SPEC})
            CROSS JOIN unnest(%(ids)s::uuid[], %(indexes)s::integer[]) AS n (id, index)
            WHERE a.id = %(id)s ORDER BY n.index
        ), made AS (
            INSERT INTO job ({_JOB_NAMES}, array_id, array_index, waits, ready, reason)
            SELECT {_JOB_NAMES}, array_id, index, CASE WHEN max_parallel IS NULL THEN 0 ELSE 2 END,
                max_parallel IS NULL, CASE WHEN max_parallel IS NULL THEN 'new' ELSE 'array' END
            FROM asked ORDER BY index
        ), told AS (
            INSERT INTO job_spec (job_id, {_SPEC_NAMES})
            SELECT id, {_SPEC_NAMES.replace("environment", _ENVIRONMENT)} FROM asked
        )
        UPDATE job_array a SET unmade = a.unmade - cardinality(%(indexes)s::integer[]),
            again = LEAST(a.again - %(replaced)s, a.unmade - cardinality(%(indexes)s::integer[])),
            pending = a.pending + cardinality(%(indexes)s::integer[]),
            todo = a.todo - (SELECT range_agg(int4range(i, i + 1)) FROM unnest(%(indexes)s::integer[]) i)
        WHERE a.id = %(id)s""",
        {**params, "replaced": replaced},
    )
    return len(indexes)


def _replace(tx: Tx, params: Mapping[str, Any]) -> int:
    return tx.run(
        """UPDATE job j SET replaced_by = n.id
        FROM unnest(%(ids)s::uuid[], %(indexes)s::integer[]) AS n (id, index)
        WHERE j.array_id = %(id)s AND j.array_index = n.index AND j.replaced_by IS NULL""",
        params,
    )


_ENVIRONMENT = """environment || jsonb_build_object('CFAB_ARRAY_ID', array_id::text,
    'CFAB_ARRAY_INDEX', index::text, 'CFAB_ARRAY_COUNT', size::text)"""


def give_turns(tx: Tx, array_id: UUID, max_parallel: int) -> int:
    """Lets jobs start up to `max_parallel` that may start or run at a time; how many more. The array is locked."""
    # Two statements: who ends at this moment passes its turn on, and is counted with it or for it.
    free = tx.value(
        """SELECT %(most)s - count(*) FROM (SELECT 1 FROM job WHERE array_id = %(id)s AND state < 4 AND waits = 0
            LIMIT %(most)s) o""",
        {"id": array_id, "most": max_parallel},
    )
    return int(tx.value("SELECT give_turns(%(id)s, %(n)s)", {"id": array_id, "n": free})) if free > 0 else 0


def finish(tx: Tx, array_id: UUID) -> None:
    """Writes that an array has ended, and tells it to those that wait for it. The array is locked."""
    tx.run(
        """WITH over AS (
            UPDATE job_array SET finished_at = clock_timestamp(), waits = false
            WHERE id = %(id)s AND finished_at IS NULL
            RETURNING id, completed = size AS completed)
        INSERT INTO ended_parent (parent_id, is_array, completed) SELECT id, true, completed FROM over""",
        {"id": array_id},
    )


def skip(tx: Tx, array_id: UUID, ranges: str, by: str, reason: str | None) -> int:
    """Indices of `ranges` (an int4multirange) that are no jobs yet never become any; how many. The array is locked.

    An index whose job failed and was to run again has failed, as before.
    """
    return int(
        tx.value(
            """WITH gone AS MATERIALIZED (
                SELECT todo * %(ranges)s::int4multirange AS r FROM job_array WHERE id = %(id)s
            ), n AS MATERIALIZED (
                SELECT COALESCE((SELECT sum(upper(one) - lower(one)) FROM gone, unnest(r) AS one), 0)::integer AS asked,
                    CASE WHEN (SELECT again FROM job_array WHERE id = %(id)s) = 0 THEN 0 ELSE (
                        SELECT count(*) FROM job, gone WHERE array_id = %(id)s AND state = 5 AND replaced_by IS NULL
                            AND r @> array_index) END::integer AS again
            )
            UPDATE job_array a SET todo = a.todo - gone.r, unmade = a.unmade - n.asked,
                again = LEAST(a.again - n.again, a.unmade - n.asked),
                skipped = a.skipped + n.asked - n.again, stop_by = %(by)s, stop_reason = %(reason)s
            FROM gone, n WHERE a.id = %(id)s RETURNING n.asked""",
            {"id": array_id, "ranges": ranges, "by": by, "reason": reason},
        )
    )


def lock_open_jobs(tx: Tx, array_id: UUID, ranges: str) -> Sequence[Row]:
    """Jobs of `ranges` that have not ended, locked in the order of their ids: id, state, attempt_id."""
    return tx.rows(
        """SELECT id, state, attempt_id FROM job
        WHERE array_id = %(id)s AND replaced_by IS NULL AND state = ANY('{0,1,2,3}')
            AND %(ranges)s::int4multirange @> array_index
        ORDER BY id FOR NO KEY UPDATE""",
        {"id": array_id, "ranges": ranges},
    )


def mark_stopping(tx: Tx, job_ids: Sequence[UUID], cause: int, by: str, reason: str | None) -> None:
    """Writes the stop flag of locked active jobs; the stronger cause stays."""
    tx.run(
        """UPDATE job SET state = 3, stop_cause = %(cause)s, stop_by = %(by)s, stop_reason = %(reason)s
        WHERE id = ANY(%(ids)s) AND state IN (1, 2, 3) AND (stop_cause IS NULL OR stop_cause < %(cause)s)""",
        {"ids": list(job_ids), "cause": cause, "by": by, "reason": reason},
    )


def run_again(tx: Tx, array_id: UUID, ranges: str) -> int:
    """Indices of `ranges` whose job failed are to do again; how many. The array is locked."""
    return int(
        tx.value(
            """WITH failed AS MATERIALIZED (
                SELECT array_index AS i FROM job, job_array a WHERE a.id = %(id)s AND array_id = a.id AND job.state = 5
                    AND replaced_by IS NULL AND %(ranges)s::int4multirange @> array_index AND NOT a.todo @> array_index)
            UPDATE job_array SET todo = todo + COALESCE((SELECT range_agg(int4range(i, i + 1)) FROM failed), '{}'),
                unmade = unmade + (SELECT count(*) FROM failed), again = again + (SELECT count(*) FROM failed),
                finished_at = CASE WHEN EXISTS (SELECT 1 FROM failed) THEN NULL ELSE finished_at END
            WHERE id = %(id)s RETURNING (SELECT count(*) FROM failed)""",
            {"id": array_id, "ranges": ranges},
        )
    )


def list_jobs(tx: Tx, array_id: UUID, states: Sequence[int] | None, limit: int, offset: int) -> Sequence[Row]:
    """The latest job of each index that has one, by index; only in these states if any are named.

    A job that failed is left out while its index waits to run again.
    """
    where = "" if states is None else "AND j.state = ANY(%(states)s)"
    return tx.rows(
        f"""SELECT {LISTED} FROM job j JOIN job_array a ON a.id = j.array_id
        WHERE j.array_id = %(id)s AND j.replaced_by IS NULL {where} AND (a.again = 0 OR NOT a.todo @> j.array_index)
        ORDER BY j.array_index LIMIT %(limit)s OFFSET %(offset)s""",
        {"id": array_id, "states": list(states or ()), "limit": limit, "offset": offset},
    )


def forget(tx: Tx, retain_days: int, limit: int) -> int:
    """Drops arrays that ended more than `retain_days` ago and have no job any more, with what they depended on; how
    many."""
    return int(
        tx.value(
            """WITH gone AS (
                DELETE FROM job_array WHERE id = ANY(ARRAY(
                    SELECT id FROM job_array a WHERE finished_at < now() - make_interval(days => %(days)s)
                        AND NOT EXISTS (SELECT 1 FROM job WHERE array_id = a.id AND replaced_by IS NULL)
                    ORDER BY finished_at LIMIT %(limit)s)) RETURNING id
            ), edges AS (DELETE FROM job_dependency d USING gone WHERE d.child_id = gone.id)
            SELECT count(*) FROM gone""",
            {"days": retain_days, "limit": limit},
        )
    )
