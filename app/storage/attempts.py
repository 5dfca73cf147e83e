"""Attempts: started, ended, and what they held given back; always guarded by the fence (job, attempt, token)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.claims import LOCK_NODE
from app.storage.database import Row, Tx, arrays

_JOB = """UPDATE job j SET state = e.state, ready = e.ready, reason = e.reason, message = e.message,
    attempt_id = NULL, stop_cause = CASE WHEN e.state = 0 THEN NULL ELSE j.stop_cause END,
    stop_by = CASE WHEN e.state = 0 THEN NULL ELSE j.stop_by END,
    stop_reason = CASE WHEN e.state = 0 THEN NULL ELSE j.stop_reason END,
    not_before = CASE WHEN e.state = 0 AND NOT e.ready THEN clock_timestamp() + make_interval(secs => e.delay_s) END,
    failures = j.failures + e.failed, lost_nodes = CASE WHEN e.lost_node IS NULL OR e.lost_node = ANY(j.lost_nodes)
        THEN j.lost_nodes ELSE j.lost_nodes || e.lost_node END,
    exit_code = CASE WHEN e.state = 0 THEN j.exit_code ELSE e.exit_code END,
    signal = CASE WHEN e.state = 0 THEN j.signal ELSE e.signal END,
    started_at = COALESCE(j.started_at, e.started_at),
    finished_at = CASE WHEN e.state > 3 THEN COALESCE(e.ended_at, clock_timestamp()) END
    FROM unnest(%(job_id)s::uuid[], %(state)s::smallint[], %(ready)s::bool[], %(reason)s::text[], %(message)s::text[],
        %(delay_s)s::float8[], %(failed)s::int[], %(lost_node)s::text[], %(exit_code)s::int[], %(signal)s::int[],
        %(started_at)s::timestamptz[], %(ended_at)s::timestamptz[])
        AS e (job_id, state, ready, reason, message, delay_s, failed, lost_node, exit_code, signal, started_at,
            ended_at)
    WHERE j.id = e.job_id"""

_ATTEMPT = """UPDATE attempt a SET ended_at = COALESCE(e.ended_at, clock_timestamp()), outcome = e.outcome,
    started_at = COALESCE(a.started_at, e.started_at), exit_code = e.exit_code, signal = e.signal, oom = e.oom,
    limit_hit = e.limit_hit, reason = e.message, stopped_by = e.stopped_by, peak_memory_bytes = e.peak_memory_bytes,
    cpu_seconds = e.cpu_seconds, output_bytes = e.output_bytes, truncated_bytes = e.truncated_bytes,
    log_gap = e.log_gap, peak_cpu_cores = e.peak_cpu_cores, peak_gpu_memory_bytes = e.peak_gpu_memory_bytes
    FROM unnest(%(attempt_id)s::uuid[], %(outcome)s::text[], %(started_at)s::timestamptz[], %(ended_at)s::timestamptz[],
        %(exit_code)s::int[], %(signal)s::int[], %(oom)s::bool[], %(limit_hit)s::text[], %(message)s::text[],
        %(stopped_by)s::text[], %(peak_memory_bytes)s::bigint[], %(cpu_seconds)s::float8[], %(output_bytes)s::bigint[],
        %(truncated_bytes)s::bigint[], %(log_gap)s::bool[], %(peak_cpu_cores)s::float8[],
        %(peak_gpu_memory_bytes)s::bigint[])
        AS e (attempt_id, outcome, started_at, ended_at, exit_code, signal, oom, limit_hit, message, stopped_by,
            peak_memory_bytes, cpu_seconds, output_bytes, truncated_bytes, log_gap, peak_cpu_cores,
            peak_gpu_memory_bytes)
    WHERE a.id = e.attempt_id"""

# A renewal locks leases in this order; the deletes would meet them in any other and could deadlock with it.
_LEASES = "SELECT 1 FROM lease WHERE attempt_id = ANY(%(attempt_id)s::uuid[]) ORDER BY attempt_id, member FOR UPDATE"

_RELEASE = """WITH gone AS (
        DELETE FROM allocation WHERE attempt_id = ANY(%(attempt_id)s::uuid[])
        RETURNING tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes
    ), less AS (
        SELECT tenant_id, node_id, count(*) AS jobs, sum(cpus_milli) AS cpus, sum(memory_bytes) AS memory,
            sum(gpus) AS gpus, sum(gpus * gpu_memory_bytes) AS gpu_memory FROM gone GROUP BY 1, 2
    ), locked AS MATERIALIZED (
        SELECT u.tenant_id, u.node_id FROM usage u
        WHERE (u.tenant_id, u.node_id) IN (SELECT tenant_id, node_id FROM less)
        ORDER BY 1, 2 FOR UPDATE
    )
    UPDATE usage u SET jobs = u.jobs - l.jobs, cpus_milli = u.cpus_milli - l.cpus,
        memory_bytes = u.memory_bytes - l.memory, gpus = u.gpus - l.gpus,
        gpu_memory_bytes = u.gpu_memory_bytes - l.gpu_memory, completed = u.completed + l.jobs
    FROM less l JOIN locked USING (tenant_id, node_id) WHERE u.tenant_id = l.tenant_id AND u.node_id = l.node_id"""


def lock_for_ending(
    tx: Tx, attempt_ids: Sequence[UUID], skip_locked: bool = False, node_id: str | None = None
) -> Sequence[Row]:
    """The jobs of these attempts, locked in the order of their ids, with what a verdict needs.

    For a transaction that claims for `node_id` afterwards, that node is locked before them, as the lock order wants it.
    """
    first = "" if node_id is None else f"{LOCK_NODE}; "
    return tx.rows(
        f"""{first}SELECT j.id AS job_id, j.state, j.attempt_id AS current, j.stop_cause, j.stop_by, j.failures,
            j.lost_nodes, j.key_id, j.queue_seq, j.class, j.tenant_id, a.id AS attempt_id, a.token, a.number, a.node_id,
            a.started_at, a.outcome, a.exit_code, s.max_retries, s.backoff_s, s.backoff_multiplier
        FROM attempt a JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id
        WHERE a.id = ANY(%(ids)s) ORDER BY j.id FOR NO KEY UPDATE OF j {"SKIP LOCKED" if skip_locked else ""}""",
        {"ids": list(attempt_ids), "node": node_id},
    )


def write_endings(tx: Tx, endings: Sequence[Mapping[str, Any]]) -> None:
    """Ends attempts, moves their jobs on, gives back all they held. The jobs must be locked, the fence checked."""
    # The trigger on job refuses starting -> terminal for nobody, so one statement may pass over running.
    tx.run(
        f"{_JOB}; {_ATTEMPT}; {_LEASES}; {_RELEASE}",
        arrays(
            endings, "job_id", "state", "ready", "reason", "message", "delay_s", "failed", "lost_node",
            "exit_code", "signal", "started_at", "ended_at", "attempt_id", "outcome", "oom", "limit_hit",
            "stopped_by", "peak_memory_bytes", "cpu_seconds", "output_bytes", "truncated_bytes", "log_gap",
            "peak_cpu_cores", "peak_gpu_memory_bytes",
        ),
    )  # fmt: skip


def mark_started(tx: Tx, starts: Sequence[Mapping[str, Any]]) -> set[UUID]:
    """Starting jobs become running under the fence; the attempts that were still current.

    A job that is being stopped stays so, and only its attempt learns when it started.
    """
    params = arrays(starts, "attempt_id", "token", "started_at")
    rows = tx.rows(
        """WITH told AS (SELECT * FROM unnest(%(attempt_id)s::uuid[], %(token)s::uuid[], %(started_at)s::timestamptz[])
            AS t (attempt_id, token, started_at)),
        locked AS MATERIALIZED (
            SELECT j.id, j.state, t.attempt_id, t.started_at FROM told t
            JOIN attempt a ON a.id = t.attempt_id AND a.token = t.token
            JOIN job j ON j.id = a.job_id AND j.attempt_id = a.id ORDER BY j.id FOR NO KEY UPDATE OF j),
        moved AS (UPDATE job j SET state = 2, started_at = COALESCE(j.started_at, l.started_at) FROM locked l
            WHERE j.id = l.id AND l.state = 1),
        noted AS (UPDATE attempt a SET started_at = l.started_at FROM locked l
            WHERE a.id = l.attempt_id AND a.started_at IS NULL)
        SELECT attempt_id FROM locked""",
        params,
    )
    return {row[0] for row in rows}


def describe(tx: Tx, attempt_ids: Sequence[UUID]) -> Sequence[Row]:
    """Attempts with their job's type, tenant and runner."""
    return tx.rows(
        """SELECT a.id, a.log_day, a.claimed_at, j.type, j.tenant_id, s.runner FROM attempt a
        JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id WHERE a.id = ANY(%(ids)s)""",
        {"ids": list(attempt_ids)},
    )
