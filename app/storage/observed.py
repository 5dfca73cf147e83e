"""Jobs of the fabric as an observer of hosts sees them: nodes, usage, beside tracked jobs, without the hidden ones."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from app.storage import jobs, tracked
from app.storage.database import Row, Tx

_SEEN = "NOT EXISTS (SELECT 1 FROM observed_hidden h WHERE h.job_id = j.id)"

# Samples lie by day and attempt. An attempt's last ones are of the day of its end (or of today), or of the day before.
_DAY = "(SELECT (COALESCE(a.ended_at, clock_timestamp()) AT TIME ZONE 'UTC')::date AS last) d"
_LATEST = """(SELECT DISTINCT ON (attempt_id) cpu_cores, memory_bytes, gpu_percent FROM (
        SELECT * FROM sample WHERE attempt_id = {id} AND day = d.last
        UNION ALL SELECT * FROM sample WHERE attempt_id = {id} AND day = d.last - 1) days
    ORDER BY attempt_id, at DESC)"""
_OF_MEMBERS = "SELECT id FROM attempt WHERE id = a.id UNION SELECT id FROM attempt WHERE leader_id = a.id"

_FABRIC = f"""SELECT {jobs.VIEW}, n.name AS owner, p.cpus_milli, u.members, u.cpu_cores, u.memory_bytes, u.gpu_percent,
        CASE WHEN j.state = 0 OR a.id IS NULL THEN '{{}}'::text[]
            WHEN a.leader_id IS NULL THEN ARRAY[a.node_id]
            ELSE (SELECT array_agg(m.node_id ORDER BY m.first) FROM (SELECT node_id, min(member) AS first FROM attempt
                WHERE leader_id = a.id GROUP BY node_id) m) END AS nodes,
        extract(epoch FROM COALESCE(j.finished_at, clock_timestamp()) - j.started_at)::float AS runtime_s
    FROM job j JOIN tenant n ON n.id = j.tenant_id JOIN job_spec p ON p.job_id = j.id
    LEFT JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt AND a.member = 0
    LEFT JOIN LATERAL {_DAY} ON true
    LEFT JOIN LATERAL (SELECT count(s.*) AS members, sum(cpu_cores) AS cpu_cores,
        sum(memory_bytes)::bigint AS memory_bytes, avg(gpu_percent) AS gpu_percent
        FROM ({_OF_MEMBERS}) m CROSS JOIN LATERAL {_LATEST.format(id="m.id")} s) u ON true"""


@dataclass(frozen=True)
class Wanted:
    """Which jobs a list holds; None is any. Without `fabric` only tracked ones are."""

    tenant_id: UUID
    states: Collection[int] | None = None
    owner: str | None = None
    node: str | None = None
    fabric: bool = True


def find(tx: Tx, tenant_id: UUID, job_id: UUID) -> Row | None:
    """The tenant's job of the fabric with its nodes and usage, unless it is hidden."""
    return tx.row(
        f"{_FABRIC} WHERE j.id = %(id)s AND j.tenant_id = %(tenant)s AND {_SEEN}", {"id": job_id, "tenant": tenant_id}
    )


def by_ids(tx: Tx, ids: Sequence[UUID]) -> Sequence[Row]:
    """These jobs of the fabric, in any order."""
    return tx.rows(f"{_FABRIC} WHERE j.id = ANY(%(ids)s)", {"ids": list(ids)})


def page(tx: Tx, wanted: Wanted, limit: int, offset: int) -> Sequence[Row]:
    """Rows (id, tracked) of both kinds in one order, newest first: ids of both begin with their time."""
    fabric, observed, params = _branches(wanted)
    return tx.rows(
        f"""SELECT id, tracked FROM (
            (SELECT j.id, false AS tracked FROM {fabric} ORDER BY j.id DESC LIMIT %(upto)s)
            UNION ALL (SELECT t.id, true FROM {observed} ORDER BY t.id DESC LIMIT %(upto)s)) merged
        ORDER BY id DESC LIMIT %(limit)s OFFSET %(offset)s""",
        {**params, "limit": limit, "offset": offset, "upto": limit + offset},
    )


def total(tx: Tx, wanted: Wanted) -> int:
    """Exactly how many jobs match: from maintained counts; with a node, by counting those that ran there."""
    if wanted.node is None:
        return _fabric_total(tx, wanted) + tracked.count(tx, "tracked", wanted.tenant_id, wanted.states, wanted.owner)
    fabric, observed, params = _branches(wanted)
    return int(tx.value(f"SELECT (SELECT count(*) FROM {fabric}) + (SELECT count(*) FROM {observed})", params))


def _fabric_total(tx: Tx, wanted: Wanted) -> int:
    if not wanted.fabric:
        return 0
    states = wanted.states
    there = sum(n for _, state, n in jobs.counts(tx, wanted.tenant_id) if states is None or state in states)
    return int(there) - hidden(tx, wanted.tenant_id, states)


def hidden(tx: Tx, tenant_id: UUID | None, states: Collection[int] | None) -> int:
    """How many jobs of the fabric are hidden: the final ones as counted, the few others one by one."""
    ending = tx.value(
        """SELECT count(*) FROM observed_hidden h JOIN job j ON j.id = h.job_id
        WHERE h.state <= 3 AND (%(tenant)s::uuid IS NULL OR h.tenant_id = %(tenant)s)
            AND (%(states)s::int[] IS NULL OR j.state = ANY(%(states)s::int[]))""",
        {"tenant": tenant_id, "states": None if states is None else sorted(states)},
    )
    return tracked.count(tx, "hidden", tenant_id, states) + int(ending)


def hide(tx: Tx, tenant_id: UUID, job_id: UUID) -> bool:
    """Takes a job out of this view for good; whether it was in it. Settles some that were hidden while they ended."""
    made = tx.run(
        """INSERT INTO observed_hidden (job_id, tenant_id, state) SELECT id, tenant_id, state FROM job
        WHERE id = %(id)s AND tenant_id = %(tenant)s FOR KEY SHARE ON CONFLICT (job_id) DO NOTHING""",
        {"id": job_id, "tenant": tenant_id},
    )
    tx.run(
        """WITH ended AS MATERIALIZED (
            SELECT h.job_id, j.state FROM observed_hidden h JOIN job j ON j.id = h.job_id
            WHERE h.tenant_id = %(tenant)s AND h.state <= 3 AND j.state > 3 LIMIT 100 FOR UPDATE OF h SKIP LOCKED)
        UPDATE observed_hidden h SET state = ended.state FROM ended WHERE h.job_id = ended.job_id""",
        {"tenant": tenant_id},
    )
    return made > 0


# Of several members of a gang on one node the first counts, so that the job is there once.
_FIRST_THERE = """(a.member = 0 OR NOT EXISTS (SELECT 1 FROM attempt o WHERE o.job_id = a.job_id
    AND o.number = a.number AND o.node_id = a.node_id AND o.member < a.member))"""


def _branches(wanted: Wanted) -> tuple[str, str, dict[str, Any]]:
    """FROM and WHERE of each kind: `job j` for the fabric's, `tracked_job t` for the tracked ones."""
    fabric = f"job j WHERE j.tenant_id = %(tenant)s AND {_SEEN}" + ("" if wanted.fabric else " AND false")
    observed = "tracked_job t WHERE t.tenant_id = %(tenant)s"
    params: dict[str, Any] = {"tenant": wanted.tenant_id, "owner": wanted.owner, "node": wanted.node}
    if wanted.node is not None:
        there = "job j JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt AND a.node_id = %(node)s"
        fabric = fabric.replace("job j", there, 1) + f" AND j.state <> 0 AND {_FIRST_THERE}"
        observed += " AND t.nodes @> ARRAY[%(node)s]"
    if wanted.owner is not None:
        observed += " AND t.owner = %(owner)s"
    if wanted.states is not None:
        params["states"] = sorted(wanted.states)
        fabric += " AND j.state = ANY(%(states)s)"
        observed += " AND t.state = ANY(%(states)s)"
    return fabric, observed, params


def samples(
    tx: Tx, job_id: UUID, start: datetime, before: datetime, limit: int, latest: bool
) -> tuple[Sequence[Row], int]:
    """Samples of all attempts, ascending, by seconds: at, members, cpu_cores, memory_bytes, gpu_percent.

    Members of a gang are measured at different times: their means over ten seconds are summed.

    The latest or the first `limit` of them, and how many there are from `start` on and before `before`.
    """
    order = "DESC" if latest else "ASC"
    params = {"id": job_id, "start": start, "before": before, "limit": limit}
    # Naming the days keeps partitions out that hold none of this job.
    rows = tx.rows(
        f"""WITH each AS (
            SELECT date_bin(CASE WHEN a.leader_id IS NULL THEN interval '1 second' ELSE interval '10 seconds' END, s.at,
                    timestamptz '2000-01-01 00:00:00+00') AS at, a.number, avg(s.cpu_cores) AS cpu_cores,
                avg(s.memory_bytes) AS memory_bytes, avg(s.gpu_percent) AS gpu_percent
            FROM attempt a CROSS JOIN LATERAL generate_series((a.claimed_at AT TIME ZONE 'UTC')::date,
                (COALESCE(a.ended_at, clock_timestamp()) AT TIME ZONE 'UTC')::date, '1 day') d
            JOIN sample s ON s.attempt_id = a.id AND s.day = d::date AND s.at >= %(start)s AND s.at < %(before)s
            WHERE a.job_id = %(id)s GROUP BY 1, 2, a.id
        ), seconds AS MATERIALIZED (
            SELECT at, number, count(*) AS members, sum(cpu_cores) AS cpu_cores,
                sum(memory_bytes)::bigint AS memory_bytes, avg(gpu_percent) AS gpu_percent FROM each GROUP BY 1, 2
        ) SELECT *, count(*) OVER () AS total FROM seconds ORDER BY at {order}, number {order} LIMIT %(limit)s""",
        params,
    )
    ascending = list(reversed(rows)) if latest else list(rows)
    return ascending, int(rows[0].total) if rows else 0


def cpus_milli(tx: Tx, job_id: UUID) -> int:
    """The share of one member of the job, in thousandths of a CPU."""
    return int(tx.value("SELECT cpus_milli FROM job_spec WHERE job_id = %(id)s", {"id": job_id}))


def running(tx: Tx, limit: int) -> Sequence[Row]:
    """What runs now on which node, newest first, over all tenants: a row per job and node, at most `limit`."""
    return tx.rows(
        f"""SELECT j.id, j.id::text AS job_id, n.name AS owner, l.node_id, sum(l.cpus_milli)::bigint AS cpus_milli,
            COALESCE(extract(epoch FROM clock_timestamp() - j.started_at), 0)::float AS runtime_s,
            sum(u.cpu_cores) AS cpu_cores, sum(u.memory_bytes)::bigint AS memory_bytes,
            avg(u.gpu_percent) AS gpu_percent
        FROM job j JOIN tenant n ON n.id = j.tenant_id
        JOIN attempt a ON a.job_id = j.id AND a.number = j.attempt AND COALESCE(a.leader_id, a.id) = j.attempt_id
        JOIN allocation l ON l.attempt_id = a.id CROSS JOIN LATERAL {_DAY}
        LEFT JOIN LATERAL {_LATEST.format(id="a.id")} u ON true
        WHERE j.state IN (1, 2, 3) AND {_SEEN}
        GROUP BY j.id, n.name, l.node_id ORDER BY j.id DESC LIMIT %(limit)s""",
        {"limit": limit},
    )


def reporting(tx: Tx, silent_s: float, limit: int) -> Sequence[Row]:
    """Running tracked jobs whose reporter was heard lately, newest first, over all tenants, at most `limit`."""
    return tx.rows(
        """SELECT id, client_id AS job_id, owner, nodes[1] AS node_id, cpu_percent, memory_mib, gpu_percent,
            extract(epoch FROM clock_timestamp() - started_at)::float AS runtime_s
        FROM tracked_job WHERE state = 2 AND heard_at > now() - make_interval(secs => %(silent)s)
        ORDER BY id DESC LIMIT %(limit)s""",
        {"silent": silent_s, "limit": limit},
    )


def state_counts(tx: Tx) -> dict[int, int]:
    """Jobs of both kinds by state, over all tenants, without the hidden ones."""
    numbers = dict.fromkeys(range(7), 0)
    for _, state, n in jobs.counts(tx, None):
        numbers[state] += n
    for state in numbers:
        numbers[state] += tracked.count(tx, "tracked", states=[state]) - hidden(tx, None, [state])
    return numbers


def ever_made(tx: Tx) -> int:
    """How many jobs of both kinds were ever made, whatever has been deleted since."""
    there = sum(n for _, _, n in jobs.counts(tx, None))
    return int(there) + tracked.count(tx, "gone") + tracked.count(tx, "created")
