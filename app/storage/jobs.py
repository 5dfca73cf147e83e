"""Jobs: inserted with their specs, found, listed, stopped, promoted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.domain.phase import STATE_OF
from app.storage.database import Row, Tx

_NO_TERMS = dict.fromkeys(
    ("tier", "quota_jobs", "quota_cpus_milli", "quota_memory_bytes", "quota_gpus", "quota_gpu_memory_bytes")
)

VIEW = """j.id, j.tenant_id, j.type, j.state, j.ready, j.reason, j.message, j.stop_cause, j.stop_by,
    j.stop_reason, j.contract, j.class, j.priority, j.node_id, j.attempt, j.created_at, j.started_at, j.finished_at,
    j.exit_code, j.signal, j.not_before, j.array_id, j.array_index"""
# For lists: when the last attempt began; a job's own start is that of its first, and most jobs have no other.
LISTED = f"""{VIEW}, CASE WHEN j.attempt > 1 THEN (SELECT min(t.started_at) FROM attempt t
    WHERE t.job_id = j.id AND t.number = j.attempt) ELSE j.started_at END AS attempt_started_at"""


def insert_jobs(
    tx: Tx, tenant_id: UUID, jobs: Sequence[Mapping[str, Any]], terms: Mapping[str, Any] | None = None
) -> list[Row]:
    """Inserts jobs and their specs in one statement; rows (id, created_at). A job with `waits` 1 is not ready.

    With `terms` (the tenant's `tier` and `quota_…` columns) only if the tenant is active and has exactly these; else
    nothing is inserted, and there are no rows.
    """
    return list(
        tx.rows(
            """SELECT * FROM insert_jobs(%(tenant)s, %(jobs)s, %(tier)s, %(quota_jobs)s, %(quota_cpus_milli)s,
                %(quota_memory_bytes)s, %(quota_gpus)s, %(quota_gpu_memory_bytes)s)""",
            {**_NO_TERMS, **(terms or {}), "jobs": json.dumps(jobs), "tenant": tenant_id},
        )
    )


def job_view(tx: Tx, job_id: UUID) -> Row | None:
    """One job's row as shown."""
    return tx.row(f"SELECT {VIEW} FROM job j WHERE j.id = %(id)s", {"id": job_id})


def lock_job(tx: Tx, job_id: UUID) -> Row | None:
    """One job's row, locked."""
    return tx.row(
        f"SELECT {VIEW}, j.attempt_id, j.key_id, j.queue_seq FROM job j WHERE j.id = %(id)s FOR NO KEY UPDATE",
        {"id": job_id},
    )


def job_spec(tx: Tx, job_id: UUID) -> Row | None:
    """What was asked of one job."""
    return tx.row("SELECT * FROM job_spec WHERE job_id = %(id)s", {"id": job_id})


def job_attempts(tx: Tx, job_id: UUID) -> Sequence[Row]:
    """All attempts of a job by number and member."""
    return tx.rows("SELECT * FROM attempt WHERE job_id = %(id)s ORDER BY number, member", {"id": job_id})


def list_jobs(tx: Tx, tenant_id: UUID, filters: Mapping[str, Any], limit: int, offset: int) -> Sequence[Row]:
    """Jobs of a tenant, newest first."""
    where, params = _where(tenant_id, filters, _OF_ROWS)
    return tx.rows(
        f"SELECT {LISTED} FROM job j WHERE {where} ORDER BY j.id DESC LIMIT %(limit)s OFFSET %(offset)s",
        {**params, "limit": limit, "offset": offset},
    )


def count_jobs(tx: Tx, tenant_id: UUID | None, filters: Mapping[str, Any]) -> int:
    """Exactly how many jobs there are, from the maintained counts: never by counting rows."""
    where, params = _where(tenant_id, filters, _OF_COUNTS)
    counts = _TOTALS
    if filters.get("type") is not None:
        # Classes and states are named, so that the key leads from row to row past all other types.
        counts = _COUNTS
        where += " AND j.class = ANY('{0,1,2}') AND j.state = ANY('{0,1,2,3,4,5,6}')"
    return int(tx.value(f"SELECT COALESCE(sum(n), 0) FROM ({counts}) j WHERE {where}", params))


_COUNTS = """SELECT tenant_id, class, state, phase, percent, type, n FROM job_count
    UNION ALL SELECT tenant_id, class, state, phase, percent, type, n FROM job_count_delta"""
_TOTALS = """SELECT tenant_id, class, state, phase, percent, n FROM job_total
    UNION ALL SELECT tenant_id, class, state, phase, percent, n FROM job_count_delta"""


def counts(tx: Tx, tenant_id: UUID | None) -> Sequence[Row]:
    """Rows (class, state, n) of one tenant or of all."""
    return tx.rows(
        f"""SELECT class, state, sum(n)::bigint AS n FROM ({_TOTALS}) c
        WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s GROUP BY 1, 2""",
        {"tenant": tenant_id},
    )


def phase_counts(tx: Tx, tenant_id: UUID | None) -> Sequence[Row]:
    """Rows (phase, n) of one tenant or of all."""
    return tx.rows(
        f"""SELECT phase, sum(n)::bigint AS n FROM ({_TOTALS}) c
        WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s GROUP BY 1""",
        {"tenant": tenant_id},
    )


def specs_with_keys(tx: Tx, job_ids: Sequence[UUID]) -> Sequence[Row]:
    """What was asked of these jobs, each with its key's class, priority and GPU shape; in no order."""
    return tx.rows(
        """SELECT s.*, k.class, k.priority, k.gpus, k.gpu_memory_bytes, k.gpu_model, k.gpu_shared
        FROM job_spec s JOIN job j ON j.id = s.job_id JOIN scheduling_key k ON k.id = j.key_id
        WHERE s.job_id = ANY(%(ids)s)""",
        {"ids": list(job_ids)},
    )


def unfolded(tx: Tx) -> int:
    """At most how many count changes every reader has to add up."""
    return int(tx.value("SELECT COALESCE(max(id) - min(id) + 1, 0) FROM job_count_delta"))


def drop_empty_counts(tx: Tx) -> int:
    """Removes counts of types that no job has any more. Only where nothing folds."""
    return tx.run("DELETE FROM job_count WHERE n = 0")


def fold_counts(tx: Tx, limit: int) -> int:
    """Adds the oldest count changes to the totals, in one statement, so that every reader sees the same sum."""
    return int(
        tx.value(
            """WITH gone AS (
                DELETE FROM job_count_delta WHERE id <= (
                    SELECT max(id) FROM (SELECT id FROM job_count_delta ORDER BY id LIMIT %(limit)s) oldest)
                RETURNING tenant_id, class, state, type, phase, percent, n
            ), folded AS (
                INSERT INTO job_count AS c (tenant_id, class, state, type, phase, percent, n)
                SELECT tenant_id, class, state, type, phase, percent, sum(n) FROM gone GROUP BY 1, 2, 3, 4, 5, 6
                ON CONFLICT (tenant_id, class, state, type, phase, percent) DO UPDATE SET n = c.n + EXCLUDED.n
            ) SELECT count(*) FROM gone""",
            {"limit": limit},
        )
    )


def cancel_pending(tx: Tx, job_ids: Sequence[UUID], by: str, reason: str | None) -> set[UUID]:
    """Ends jobs that are pending; the ones that were. Locks in the order of ids."""
    rows = tx.rows(
        """WITH locked AS MATERIALIZED (
            SELECT id FROM job WHERE id = ANY(%(ids)s) AND state = 0 ORDER BY id FOR NO KEY UPDATE)
        UPDATE job j SET state = 6, ready = false, reason = NULL, not_before = NULL, stop_cause = 4, stop_by = %(by)s,
            stop_reason = %(reason)s, finished_at = clock_timestamp()
        FROM locked WHERE j.id = locked.id AND j.state = 0 RETURNING j.id""",
        {"ids": list(job_ids), "by": by, "reason": reason},
    )
    return {row[0] for row in rows}


def mark_stopping(tx: Tx, job_id: UUID, cause: int, by: str, reason: str | None) -> None:
    """Writes the stop flag of an active job; the stronger cause stays."""
    tx.run(
        """UPDATE job SET state = 3, stop_cause = %(cause)s, stop_by = %(by)s, stop_reason = %(reason)s
        WHERE id = %(id)s AND state IN (1, 2, 3) AND (stop_cause IS NULL OR stop_cause < %(cause)s)""",
        {"id": job_id, "cause": cause, "by": by, "reason": reason},
    )


def due_jobs(tx: Tx, limit: int) -> Sequence[Row]:
    """Pending jobs whose backoff is over, locked: id, key_id, queue_seq, class."""
    return tx.rows(
        """SELECT id, key_id, queue_seq, class FROM job
        WHERE state = 0 AND NOT ready AND not_before IS NOT NULL AND not_before <= now()
        ORDER BY not_before LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED""",
        {"limit": limit},
    )


def key_of(tx: Tx, key_id: int) -> Row:
    """A scheduling key with its tenant's tier."""
    return tx.row(
        "SELECT k.*, t.tier FROM scheduling_key k JOIN tenant t ON t.id = k.tenant_id WHERE k.id = %(id)s",
        {"id": key_id},
    )


def move_to_key(tx: Tx, job_id: UUID, key_id: int, priority_class: int, priority: int) -> None:
    """The locked, pending job waits under another key (which must be revived) from now on, at the age it has.

    What its contract was asked for as its priority is forgotten: it would be told for ever.
    """
    tx.run(
        """WITH told AS (UPDATE job_spec SET asked = asked - 'priority' WHERE job_id = %(id)s AND asked ? 'priority')
        UPDATE job SET key_id = %(key)s, class = %(class)s, priority = %(priority)s WHERE id = %(id)s AND state = 0""",
        {"id": job_id, "key": key_id, "class": priority_class, "priority": priority},
    )


def make_ready(tx: Tx, job_ids: Sequence[UUID]) -> None:
    """Pending jobs may be claimed again. Their keys must be held (`revive_keys`)."""
    tx.run(
        "UPDATE job SET ready = true, not_before = NULL WHERE id = ANY(%(ids)s) AND state = 0",
        {"ids": list(job_ids)},
    )


def ready_by_class(tx: Tx) -> set[int]:
    """Classes in which some key is live from which nodes may claim."""
    return {
        c
        for c in (0, 1, 2)
        if tx.value("SELECT 1 FROM scheduling_key WHERE live AND members = 1 AND class = %(c)s LIMIT 1", {"c": c})
        is not None
    }


@dataclass(frozen=True)
class _Columns:
    """Where a filter finds phase and percentage: worked out of a job's row, or stored with a count."""

    phase: str
    percent: str


_OF_ROWS = _Columns("job_phase(j.state, j.ready, j.reason, j.stop_cause)", "job_percent(j.priority)")
_OF_COUNTS = _Columns("j.phase", "j.percent")
_FILTERS = frozenset({"phases", "least_percent", "type", "priority_class"})


def _where(tenant_id: UUID | None, filters: Mapping[str, Any], columns: _Columns) -> tuple[str, dict[str, Any]]:
    unknown = filters.keys() - _FILTERS
    if unknown:
        # Left out in silence a filter would make a list longer and a total greater than what was asked for.
        raise ValueError(f"unknown filters: {', '.join(sorted(unknown))}; there are {', '.join(sorted(_FILTERS))}")
    where = ["true"]
    params: dict[str, Any] = {}
    if tenant_id is not None:
        where.append("j.tenant_id = %(tenant)s")
        params["tenant"] = tenant_id
    if filters.get("phases") is not None:
        # The states besides, for the indexes know them alone.
        where.append("j.state = ANY(%(states)s)")
        params["states"] = sorted({int(STATE_OF[phase]) for phase in filters["phases"]})
        phases = set(filters["phases"])
        if any(phase not in phases for phase, state in STATE_OF.items() if int(state) in params["states"]):
            where.append(f"{columns.phase} = ANY(%(phases)s)")
            params["phases"] = sorted(int(phase) for phase in phases)
    if filters.get("least_percent") is not None:
        where.append(f"{columns.percent} >= %(percent)s")
        params["percent"] = filters["least_percent"]
    if filters.get("type") is not None:
        where.append("j.type = %(type)s")
        params["type"] = filters["type"]
    if filters.get("priority_class") is not None:
        where.append("j.class = %(class)s")
        params["class"] = int(filters["priority_class"])
    return " AND ".join(where), params
