"""Samples of what attempts use: written in batches, read by job, dropped day by day with their partitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx, arrays

NAMES = ("attempt_id", "member", "age_s", "cpu_cores", "memory_bytes", "gpu_percent", "gpu_memory_bytes")


def insert(tx: Tx, samples: Sequence[Mapping[str, Any]]) -> int:
    """Writes samples in one statement, each `age_s` before now by this server's clock; how many."""
    if not samples:
        return 0
    return tx.run(
        """INSERT INTO sample (day, attempt_id, member, at, cpu_cores, memory_bytes, gpu_percent, gpu_memory_bytes)
        SELECT (t.at AT TIME ZONE 'UTC')::date, s.attempt_id, s.member, t.at, s.cpu, s.memory, s.gpu, s.gpu_memory
        FROM unnest(%(attempt_id)s::uuid[], %(member)s::smallint[], %(age_s)s::float8[], %(cpu_cores)s::float8[],
            %(memory_bytes)s::bigint[], %(gpu_percent)s::float8[], %(gpu_memory_bytes)s::bigint[])
            AS s (attempt_id, member, age_s, cpu, memory, gpu, gpu_memory)
        CROSS JOIN LATERAL (SELECT now() - make_interval(secs => s.age_s) AS at) t ON CONFLICT DO NOTHING""",
        arrays(samples, *NAMES),
    )


def keep_peaks(tx: Tx, attempt_id: UUID) -> None:
    """Writes the greatest samples of an attempt that was lost into its record; what that has stays where it is more."""
    tx.run(
        """WITH lost AS (SELECT id, claimed_at, ended_at FROM attempt WHERE id = %(id)s AND outcome IS NOT NULL
        ), peak AS (
            SELECT max(s.memory_bytes) AS memory, max(s.cpu_cores) AS cores, max(s.gpu_memory_bytes) AS gpu_memory
            FROM lost JOIN sample s ON s.attempt_id = lost.id
                AND s.day BETWEEN lost.claimed_at::date - 1 AND lost.ended_at::date + 1)
        UPDATE attempt a SET peak_memory_bytes = GREATEST(a.peak_memory_bytes, p.memory),
            peak_cpu_cores = GREATEST(a.peak_cpu_cores, p.cores),
            peak_gpu_memory_bytes = GREATEST(a.peak_gpu_memory_bytes, p.gpu_memory)
        FROM peak p WHERE a.id = %(id)s AND a.outcome IS NOT NULL AND p.memory IS NOT NULL""",
        {"id": attempt_id},
    )


def attempts(tx: Tx, job_id: UUID) -> Sequence[Row]:
    """The attempts of a job: id, number, member, the days between which they ran."""
    return tx.rows(
        """SELECT id, number, member, claimed_at::date AS first_day, COALESCE(ended_at, now())::date AS last_day
        FROM attempt WHERE job_id = %(id)s ORDER BY number, member""",
        {"id": job_id},
    )


class Window:
    """Samples of some attempts from day to day, from `start` to within the second of `end`; None is open."""

    def __init__(
        self, attempt_ids: Sequence[UUID], first: date, last: date, start: datetime | None, end: datetime | None
    ) -> None:
        # The days name the partitions to look at; a day more on both sides, for a clock of another host.
        self._where = """attempt_id = ANY(%(ids)s) AND day BETWEEN %(first)s::date - 1 AND %(last)s::date + 1
            AND (%(start)s::timestamptz IS NULL OR at >= %(start)s)
            AND (%(end)s::timestamptz IS NULL OR at < %(end)s::timestamptz + interval '1 second')"""
        self._params = {"ids": list(attempt_ids), "first": first, "last": last, "start": start, "end": end}

    def count(self, tx: Tx) -> int:
        """How many there are."""
        return int(tx.value(f"SELECT count(*) FROM sample WHERE {self._where}", self._params))

    def read(self, tx: Tx, limit: int, latest: bool) -> Sequence[Row]:
        """The first `limit` of them, or the latest; ascending either way."""
        order = "DESC" if latest else "ASC"
        return tx.rows(
            f"""SELECT * FROM (SELECT attempt_id, member, at, cpu_cores, memory_bytes, gpu_percent, gpu_memory_bytes
                FROM sample WHERE {self._where} ORDER BY at {order}, attempt_id, member LIMIT %(limit)s) s
            ORDER BY at, attempt_id, member""",
            {**self._params, "limit": limit},
        )


def of_active_jobs(tx: Tx, tenant_id: UUID, job_id: UUID | None, limit: int, depth: int) -> Sequence[Row]:
    """Up to `limit` allocations of a tenant's active jobs, the newest job first, with their last `depth` samples.

    Samples come as one array a column (`ats`, `cpus`, …), oldest first, null where there is none yet.
    """
    return tx.rows(
        """SELECT j.id, j.type, j.state, a.node_id, j.attempt, a.started_at, a.member, l.cpus_milli, l.memory_bytes,
            l.gpus, l.gpu_memory_bytes, s.hard_limits, r.*
        FROM job j JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt
            AND COALESCE(a.leader_id, a.id) = j.attempt_id
        JOIN allocation l ON l.attempt_id = a.id
        JOIN job_spec s ON s.job_id = j.id
        CROSS JOIN LATERAL (
            SELECT array_agg(at ORDER BY at) AS ats, array_agg(cpu_cores ORDER BY at) AS cpus,
                array_agg(memory_bytes ORDER BY at) AS memories, array_agg(gpu_percent ORDER BY at) AS gpu_percents,
                array_agg(gpu_memory_bytes ORDER BY at) AS gpu_memories
            FROM (SELECT * FROM sample WHERE attempt_id = l.attempt_id AND member = l.member
                AND day BETWEEN CURRENT_DATE - 1 AND CURRENT_DATE + 1 ORDER BY day DESC, at DESC LIMIT %(depth)s) x) r
        WHERE j.tenant_id = %(tenant)s AND j.state IN (1, 2, 3) AND (%(job)s::uuid IS NULL OR j.id = %(job)s)
        ORDER BY j.id DESC, a.member LIMIT %(limit)s""",
        {"tenant": tenant_id, "job": job_id, "limit": limit, "depth": depth},
    )
