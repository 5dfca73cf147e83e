"""What the planner reads, within bounds whatever the backlog, and what it keeps: reservations, notes, shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Json, Row, Tx, records

MOST_KEYS = 4000
"""Scheduling keys that are looked at in one cycle: first those of jobs of several members, then the best of each
tenant."""
MOST_HEADS = 8000
HEADS_PER_KEY = 8


def begin_snapshot(tx: Tx) -> float:
    """Makes all that this transaction reads one moment; that moment in seconds since 1970. Call it first."""
    tx.run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
    return float(tx.value("SELECT extract(epoch FROM clock_timestamp())"))


def nodes(tx: Tx, silent_s: float) -> Sequence[Row]:
    """The agents that take jobs and were heard of lately, with their capacity."""
    return tx.rows(
        """SELECT id, capabilities, slots, cpus_milli, memory_bytes, gpus, gpus_out, gpu_sharing, cluster, labels,
            operator_labels
        FROM node WHERE kind = 'agent' AND state = 'ready'
            AND last_seen_at > clock_timestamp() - make_interval(secs => %(silent)s) ORDER BY id""",
        {"silent": silent_s},
    )


def running(tx: Tx) -> Sequence[Row]:
    """Every allocation on agents, with its job's rank, times (seconds since 1970), and whether it may be preempted."""
    return tx.rows(
        """SELECT a.id AS attempt_id, a.job_id, a.leader_id, j.tenant_id, k.class, k.priority, t.tier, l.node_id,
            l.cpus_milli, l.memory_bytes, l.gpus, l.gpu_memory_bytes, k.gpu_model, k.gpu_shared, l.gpu_uuids,
            s.time_limit_s, s.grace_s, extract(epoch FROM a.started_at)::float8 AS started_at,
            extract(epoch FROM a.checkpoint_at)::float8 AS checkpoint_at,
            COALESCE(s.preemptible, t.allow_preemption) AS may_be_preempted,
            j.state = 3 OR b.broken IS NOT NULL AS stopping,
            extract(epoch FROM a.claimed_at - GREATEST(j.ready_since, CASE WHEN a.number = 1 THEN j.created_at
                ELSE COALESCE((SELECT max(p.ended_at) FROM attempt p WHERE p.job_id = j.id AND p.number < a.number),
                    j.created_at) END))::float8 AS waited_s
        FROM allocation l JOIN node n ON n.id = l.node_id AND n.kind = 'agent'
        JOIN attempt a ON a.id = l.attempt_id JOIN job j ON j.id = a.job_id JOIN job_spec s ON s.job_id = j.id
        JOIN scheduling_key k ON k.id = j.key_id JOIN tenant t ON t.id = j.tenant_id
        LEFT JOIN attempt b ON b.id = a.leader_id ORDER BY a.id"""
    )


def heads(tx: Tx) -> Sequence[Row]:
    """The oldest ready jobs of each live key in turn, so few of each that their sum is bounded.

    `waiting_since` is when the job was submitted, when it had nothing of its own to wait for any more (a hold, other
    jobs, its array's turn), or when its last attempt ended, whichever was last; `avoid` where it failed or was lost.
    """
    # A few rows of each key go by index, whatever the tables' sizes suggest.
    tx.run("SET LOCAL enable_hashjoin = off")
    tx.run("SET LOCAL enable_mergejoin = off")
    found = tx.rows(
        """WITH keys AS MATERIALIZED (
            SELECT k.*, t.tier, t.can_preempt_others FROM scheduling_key k
            JOIN tenant t ON t.id = k.tenant_id AND t.active WHERE k.live
            ORDER BY k.members = 1, row_number() OVER (
                PARTITION BY k.tenant_id, k.class ORDER BY k.members = 1, k.priority DESC, k.low_water)
            LIMIT %(keys)s)
        SELECT j.id AS job_id, k.id AS key_id, k.tenant_id, k.class, k.priority, k.tier, k.runner, k.members,
            k.cpus_milli, k.memory_bytes, k.gpus, k.gpu_memory_bytes, k.gpu_model, k.gpu_shared, k.can_preempt_others,
            j.queue_seq, s.time_limit_s, s.grace_s, extract(epoch FROM GREATEST(j.ready_since, CASE WHEN j.attempt = 0
                THEN j.created_at ELSE COALESCE((SELECT max(a.ended_at) FROM attempt a WHERE a.job_id = j.id),
                    j.created_at) END))::float8 AS waiting_since,
            CASE WHEN j.attempt = 0 THEN '{}'::text[] ELSE ARRAY(SELECT DISTINCT a.node_id FROM attempt a
                WHERE a.job_id = j.id AND a.outcome IN ('failed', 'timed_out', 'out_of_memory', 'lost', 'node_fault'))
                END AS avoid
        FROM keys k CROSS JOIN LATERAL (
            SELECT id, queue_seq, attempt, created_at, ready_since FROM job
            WHERE key_id = k.id AND state = 0 AND ready AND queue_seq >= k.low_water ORDER BY queue_seq
            LIMIT GREATEST(1, LEAST(%(per_key)s, %(heads)s / (SELECT count(*) FROM keys)))) j
        JOIN job_spec s ON s.job_id = j.id ORDER BY j.queue_seq""",
        {"keys": MOST_KEYS, "heads": MOST_HEADS, "per_key": HEADS_PER_KEY},
    )
    tx.run("SET LOCAL enable_hashjoin = on")
    tx.run("SET LOCAL enable_mergejoin = on")
    return found


def tenants(tx: Tx) -> Sequence[Row]:
    """Active tenants with weight, quota, what they use now (`used_jobs` …) and used before (`average`)."""
    return tx.rows(
        """SELECT t.id, t.weight, t.quota_jobs, t.quota_cpus_milli, t.quota_memory_bytes, t.quota_gpus,
            t.quota_gpu_memory_bytes, COALESCE(u.jobs, 0) AS used_jobs, COALESCE(u.cpus, 0) AS used_cpus,
            COALESCE(u.memory, 0) AS used_memory, COALESCE(u.gpus, 0) AS used_gpus,
            COALESCE(u.gpu_memory, 0) AS used_gpu_memory, COALESCE(s.average, 0) AS average,
            extract(epoch FROM clock_timestamp() - s.at)::float8 AS age_s
        FROM tenant t LEFT JOIN (
            SELECT tenant_id, sum(jobs)::bigint AS jobs, sum(cpus_milli)::bigint AS cpus,
                sum(memory_bytes)::bigint AS memory, sum(gpus)::bigint AS gpus,
                sum(gpu_memory_bytes)::bigint AS gpu_memory FROM usage GROUP BY tenant_id) u ON u.tenant_id = t.id
        LEFT JOIN tenant_share s ON s.tenant_id = t.id WHERE t.active"""
    )


def write_shares(tx: Tx, averages: Mapping[UUID, float], forget: Sequence[UUID]) -> None:
    """Keeps what tenants used before, as of now; forgets those who used next to nothing."""
    tx.run(
        """INSERT INTO tenant_share AS s (tenant_id, average) SELECT i.id, i.average
        FROM unnest(%(ids)s::uuid[], %(averages)s::float8[]) AS i (id, average) ORDER BY i.id
        ON CONFLICT (tenant_id) DO UPDATE SET average = EXCLUDED.average, at = now()""",
        {"ids": list(averages), "averages": list(averages.values())},
    )
    if forget:
        tx.run("DELETE FROM tenant_share WHERE tenant_id = ANY(%(ids)s::uuid[])", {"ids": list(forget)})


def reserved(tx: Tx) -> Sequence[Row]:
    """The reservations that still count, in the order in which they were made."""
    return tx.rows(
        """SELECT r.job_id, r.member, r.node_id, r.class, r.slots, r.cpus_milli, r.memory_bytes, r.gpu_uuids, r.why,
            extract(epoch FROM r.starts_at)::float8 AS starts_at, extract(epoch FROM r.made_at)::float8 AS made_at
        FROM reservation r JOIN job j ON j.id = r.job_id
        WHERE r.expires_at > clock_timestamp() AND j.state = 0 AND j.ready ORDER BY r.made_at, r.job_id, r.member"""
    )


def replace_reservations(
    tx: Tx, wanted: Sequence[Mapping[str, Any]], lasts_s: float, starting: Sequence[UUID] = ()
) -> int:
    """Makes `wanted` all that is reserved, where its jobs still wait; how many rows that changed.

    Those that stay as they are get a new end only when half of their time is over. What jobs that are `starting` have
    stays theirs as well: it goes when they have started, or with the next plan.
    """
    gone = tx.run(
        """DELETE FROM reservation r WHERE NOT EXISTS (
            SELECT 1 FROM json_to_recordset(%(wanted)s) AS w (job_id uuid, member smallint)
            JOIN job j ON j.id = w.job_id AND j.state = 0 AND j.ready
            WHERE w.job_id = r.job_id AND w.member = r.member) AND r.job_id <> ALL(%(starting)s::uuid[])""",
        {"wanted": records(wanted), "starting": list(starting)},
    )
    if not wanted:
        return gone
    return gone + tx.run(
        """INSERT INTO reservation AS r (job_id, member, node_id, class, slots, cpus_milli, memory_bytes, gpu_uuids,
            starts_at, expires_at, awaited, why)
        SELECT w.job_id, w.member, w.node_id, w.class, w.slots, w.cpus_milli, w.memory_bytes,
            ARRAY(SELECT json_array_elements_text(w.gpu_uuids)), to_timestamp(w.starts_at::float8),
            clock_timestamp() + make_interval(secs => %(lasts)s),
            ARRAY(SELECT json_array_elements_text(w.awaited)::uuid), w.why
        FROM json_to_recordset(%(wanted)s) AS w (job_id uuid, member smallint, node_id text, class smallint,
            slots integer, cpus_milli bigint, memory_bytes bigint, gpu_uuids json, starts_at text, awaited json,
            why text)
        JOIN job j ON j.id = w.job_id AND j.state = 0 AND j.ready ORDER BY w.job_id, w.member
        ON CONFLICT (job_id, member) DO UPDATE SET node_id = EXCLUDED.node_id, class = EXCLUDED.class,
            slots = EXCLUDED.slots, cpus_milli = EXCLUDED.cpus_milli, memory_bytes = EXCLUDED.memory_bytes,
            gpu_uuids = EXCLUDED.gpu_uuids, starts_at = EXCLUDED.starts_at, expires_at = EXCLUDED.expires_at,
            awaited = EXCLUDED.awaited, why = EXCLUDED.why
        WHERE (r.node_id, r.class, r.slots, r.cpus_milli, r.memory_bytes, r.gpu_uuids, r.awaited, r.why)
                IS DISTINCT FROM (EXCLUDED.node_id, EXCLUDED.class, EXCLUDED.slots, EXCLUDED.cpus_milli,
                EXCLUDED.memory_bytes, EXCLUDED.gpu_uuids, EXCLUDED.awaited, EXCLUDED.why)
            OR (r.starts_at IS NULL) <> (EXCLUDED.starts_at IS NULL)
            OR abs(extract(epoch FROM r.starts_at - EXCLUDED.starts_at)) > 0.5
            OR r.expires_at < clock_timestamp() + make_interval(secs => %(lasts)s / 2)""",
        {"wanted": records(wanted), "lasts": lasts_s},
    )


def preempt(tx: Tx, victims: Sequence[Mapping[str, Any]], cause: int) -> Sequence[Row]:
    """Flags running jobs that are to make room, each for a job that still waits; rows (job_id, node_id) of all members.

    A victim whose attempt is over, or that is being stopped already, is left alone.
    """
    return tx.rows(
        """WITH victim AS MATERIALIZED (
            SELECT j.id, v.why, v.attempt_id
            FROM json_to_recordset(%(victims)s) AS v (attempt_id uuid, for_job uuid, why text)
            JOIN job j ON j.attempt_id = v.attempt_id JOIN job w ON w.id = v.for_job AND w.state = 0 AND w.ready
            WHERE j.state IN (1, 2) ORDER BY j.id FOR NO KEY UPDATE OF j
        ), told AS (
            UPDATE job SET state = 3, stop_cause = %(cause)s, stop_by = 'scheduler', stop_reason = victim.why
            FROM victim WHERE job.id = victim.id AND job.state IN (1, 2) RETURNING job.id, job.attempt_id)
        SELECT told.id AS job_id, l.node_id FROM told CROSS JOIN LATERAL (
            SELECT told.attempt_id AS id UNION SELECT a.id FROM attempt a WHERE a.leader_id = told.attempt_id) m
        JOIN allocation l ON l.attempt_id = m.id""",
        {"victims": records(victims), "cause": cause},
    )


def replace_notes(tx: Tx, notes: Sequence[Mapping[str, Any]], stale_s: float) -> None:
    """Makes `notes` all that is noted; one that says the same thing in other numbers is written anew now and then."""
    tx.run(
        """DELETE FROM plan_note n WHERE n.job_id <> ALL(%(ids)s::uuid[])""",
        {"ids": [note["job_id"] for note in notes]},
    )
    if notes:
        tx.run(
            """INSERT INTO plan_note AS n (job_id, reason, message, numbers)
            SELECT w.job_id, w.reason, w.message, w.numbers
            FROM jsonb_to_recordset(%(notes)s::jsonb) AS w (job_id uuid, reason text, message text, numbers jsonb)
            JOIN job j ON j.id = w.job_id AND j.state = 0 ORDER BY w.job_id
            ON CONFLICT (job_id) DO UPDATE SET at = now(), reason = EXCLUDED.reason, message = EXCLUDED.message,
                numbers = EXCLUDED.numbers
            WHERE n.reason <> EXCLUDED.reason OR n.at < now() - make_interval(secs => %(stale)s)""",
            {"notes": Json([{**note, "job_id": str(note["job_id"])} for note in notes]), "stale": stale_s},
        )
