"""Tracked jobs: made, found, changed, removed by their reporters; their samples; how many observed jobs there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx

COLUMNS = """t.id, t.tenant_id, t.client_id, t.owner, t.nodes, t.state, t.created_at, t.started_at, t.ended_at,
    t.cpu_percent, t.memory_mib, t.gpu_percent,
    extract(epoch FROM COALESCE(t.ended_at, clock_timestamp()) - t.started_at)::float AS runtime_s"""


def insert(tx: Tx, values: Mapping[str, Any]) -> Row | None:
    """A running job of id, tenant_id, client_id, owner and nodes; None when the tenant has one of this client id."""
    return tx.row(
        f"""INSERT INTO tracked_job AS t (id, tenant_id, client_id, owner, nodes)
        VALUES (%(id)s, %(tenant_id)s, %(client_id)s, %(owner)s, %(nodes)s)
        ON CONFLICT (tenant_id, client_id) DO NOTHING RETURNING {COLUMNS}""",
        values,
    )


def find(tx: Tx, tenant_id: UUID, key: UUID | str, lock: bool = False) -> Row | None:
    """The tenant's job with this id of the fabric (a UUID) or this client id (a text); `lock` holds it till the end."""
    name = "id" if isinstance(key, UUID) else "client_id"
    return tx.row(
        f"SELECT {COLUMNS} FROM tracked_job t WHERE t.tenant_id = %(tenant)s AND t.{name} = %(key)s"
        + (" FOR NO KEY UPDATE" if lock else ""),
        {"tenant": tenant_id, "key": key},
    )


def by_ids(tx: Tx, ids: Sequence[UUID]) -> Sequence[Row]:
    """These jobs, in any order."""
    return tx.rows(f"SELECT {COLUMNS} FROM tracked_job t WHERE t.id = ANY(%(ids)s)", {"ids": list(ids)})


def change(tx: Tx, job_id: UUID, changes: Mapping[str, Any]) -> Row | None:
    """Sets state, cpu_percent, memory_mib and gpu_percent where `changes` has them, and that the reporter was heard.

    Time stops at the first of several ends and goes on when a job comes back; it begins anew when a job that was
    pending starts.
    """
    params = {"state": None, "cpu_percent": None, "memory_mib": None, "gpu_percent": None, **changes, "id": job_id}
    return tx.row(
        f"""UPDATE tracked_job t SET heard_at = clock_timestamp(), state = COALESCE(%(state)s, state),
            started_at = CASE WHEN state = 0 AND %(state)s = 2 THEN clock_timestamp() ELSE started_at END,
            ended_at = CASE WHEN COALESCE(%(state)s, state) > 3 THEN COALESCE(ended_at, clock_timestamp()) END,
            cpu_percent = COALESCE(%(cpu_percent)s, cpu_percent), memory_mib = COALESCE(%(memory_mib)s, memory_mib),
            gpu_percent = COALESCE(%(gpu_percent)s, gpu_percent)
        WHERE id = %(id)s RETURNING {COLUMNS}""",
        params,
    )


def delete(tx: Tx, tenant_id: UUID, key: UUID | str) -> bool:
    """Removes a job with its samples; whether there was one."""
    name = "id" if isinstance(key, UUID) else "client_id"
    return (
        tx.run(
            f"DELETE FROM tracked_job WHERE tenant_id = %(tenant)s AND {name} = %(key)s",
            {"tenant": tenant_id, "key": key},
        )
        > 0
    )


def insert_sample(tx: Tx, job_id: UUID, cpu_percent: float, memory_mib: int, gpu_percent: float | None) -> datetime:
    """Adds a sample of now; its time."""
    at: datetime = tx.value(
        """INSERT INTO tracked_sample (job_id, at, cpu_percent, memory_mib, gpu_percent)
        VALUES (%(id)s, clock_timestamp(), %(cpu)s, %(memory)s, %(gpu)s) RETURNING at""",
        {"id": job_id, "cpu": cpu_percent, "memory": memory_mib, "gpu": gpu_percent},
    )
    return at


def samples(
    tx: Tx, job_id: UUID, start: datetime, before: datetime, limit: int, latest: bool
) -> tuple[Sequence[Row], int]:
    """Samples (at, cpu_percent, memory_mib, gpu_percent) in ascending order: the latest or the first `limit`.

    Also how many there are from `start` on and before `before`.
    """
    order, params = "DESC" if latest else "ASC", {"id": job_id, "start": start, "before": before, "limit": limit}
    where = "job_id = %(id)s AND at >= %(start)s AND at < %(before)s"
    rows = tx.rows(
        f"""SELECT at, cpu_percent, memory_mib, gpu_percent FROM (SELECT * FROM tracked_sample WHERE {where}
            ORDER BY at {order}, id {order} LIMIT %(limit)s) s ORDER BY at, id""",
        params,
    )
    return rows, int(tx.value(f"SELECT count(*) FROM tracked_sample WHERE {where}", params))


def drop_old_samples(tx: Tx, retain_days: int) -> int:
    """Removes samples older than the retention; how many."""
    return tx.run(
        "DELETE FROM tracked_sample WHERE at < now() - make_interval(days => %(days)s)", {"days": retain_days}
    )


_COUNTS = """SELECT tenant_id, kind, state, owner, n FROM observed_count
    UNION ALL SELECT tenant_id, kind, state, owner, n FROM observed_count_delta"""


def count(
    tx: Tx, kind: str, tenant_id: UUID | None = None, states: Collection[int] | None = None, owner: str | None = None
) -> int:
    """How many of a kind are counted (tracked, hidden, created, gone): exact, without looking at them."""
    where, params = (
        ["kind = %(kind)s"],
        {"kind": kind, "tenant": tenant_id, "owner": owner, "states": sorted(states or [])},
    )
    where += ["tenant_id = %(tenant)s"] * (tenant_id is not None)
    where += ["owner = %(owner)s"] * (owner is not None)
    where += ["state = ANY(%(states)s)"] * (states is not None)
    return int(tx.value(f"SELECT COALESCE(sum(n), 0) FROM ({_COUNTS}) c WHERE {' AND '.join(where)}", params))


def fold(tx: Tx, limit: int) -> int:
    """Adds the oldest count changes to the totals, so that every reader sees the same sum; how many."""
    if not tx.value("SELECT pg_try_advisory_xact_lock(hashtextextended('observed_count', 72))"):
        return 0
    folded = tx.rows(
        """WITH gone AS (
            DELETE FROM observed_count_delta WHERE id IN (
                SELECT id FROM observed_count_delta ORDER BY id LIMIT %(limit)s)
            RETURNING tenant_id, kind, state, owner, n
        ) INSERT INTO observed_count AS c (tenant_id, kind, state, owner, n)
        SELECT tenant_id, kind, state, owner, sum(n) FROM gone GROUP BY 1, 2, 3, 4
        ON CONFLICT (tenant_id, kind, state, owner) DO UPDATE SET n = c.n + EXCLUDED.n RETURNING n""",
        {"limit": limit},
    )
    # Owners are the reporters' words: without this their rows would outlive all of their jobs.
    if any(row.n == 0 for row in folded):
        tx.run("DELETE FROM observed_count WHERE n = 0")
    return len(folded)
