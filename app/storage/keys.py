"""Scheduling keys: found or made at submit, summed up for `choose`, swept when idle.

A key's `low_water` lets the walk over its pending jobs start past dead index entries. Whoever makes a job ready holds
its key FOR KEY SHARE first; the sweep takes FOR UPDATE, so it can never pass a job that is about to appear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID

from app.domain.policy import KeySummary
from app.domain.priority import PriorityClass
from app.domain.resources import Free, Resources
from app.storage.database import Row, Tx

Shape = tuple[int, int, str, bool, int, int, int, int, str]
"""class, priority, runner, external_ok, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, gpu_model."""

_COLUMNS = "class, priority, runner, external_ok, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, gpu_model"
_SHAPES = """unnest(%(class)s::smallint[], %(priority)s::int[], %(runner)s::text[], %(external_ok)s::bool[],
    %(cpus)s::bigint[], %(memory)s::bigint[], %(gpus)s::int[], %(gpu_memory)s::bigint[], %(model)s::text[])"""


def find_keys(tx: Tx, tenant_id: UUID, shapes: Sequence[Shape]) -> dict[Shape, int]:
    """Ids of the live keys among `shapes`, each locked FOR KEY SHARE till the end of the transaction."""
    rows = tx.rows(
        f"""SELECT id, {_COLUMNS} FROM scheduling_key
        WHERE tenant_id = %(tenant)s AND live AND ({_COLUMNS}) IN (SELECT * FROM {_SHAPES})
        ORDER BY id FOR KEY SHARE""",
        _columns(tenant_id, shapes),
    )
    return {tuple(row[1:]): row[0] for row in rows}


def make_keys(tx: Tx, tenant_id: UUID, shapes: Iterable[Shape]) -> dict[Shape, int]:
    """Makes or revives keys; their ids. In a fixed order, so that two makers cannot wait for each other."""
    rows = tx.rows(
        f"""INSERT INTO scheduling_key AS k (tenant_id, {_COLUMNS})
        SELECT %(tenant)s, * FROM {_SHAPES}
        ON CONFLICT ON CONSTRAINT uq_scheduling_key_shape DO UPDATE SET live = true RETURNING id, {_COLUMNS}""",
        _columns(tenant_id, sorted(shapes)),
    )
    return {tuple(row[1:]): row[0] for row in rows}


def count_live(tx: Tx, tenant_id: UUID) -> int:
    """How many different shapes of this tenant are live."""
    return int(
        tx.value(
            "SELECT count(*) FROM scheduling_key WHERE live AND class IN (0, 1, 2) AND tenant_id = %(tenant)s",
            {"tenant": tenant_id},
        )
    )


def revive_keys(tx: Tx, heads: dict[int, int]) -> None:
    """Makes keys live again whose jobs are about to become ready; `heads` maps key to the least queue_seq."""
    if not heads:
        return
    params = {"keys": sorted(heads), "heads": [heads[key] for key in sorted(heads)]}
    tx.rows("SELECT id FROM scheduling_key WHERE id = ANY(%(keys)s) ORDER BY id FOR KEY SHARE", params)
    tx.run(
        """UPDATE scheduling_key k SET live = true, low_water = LEAST(k.low_water, h.head)
        FROM unnest(%(keys)s::bigint[], %(heads)s::bigint[]) AS h (id, head)
        WHERE k.id = h.id AND (NOT k.live OR k.low_water > h.head)""",
        params,
    )


def candidates(
    tx: Tx, free: Free, runners: Sequence[str], external: bool, per_tenant: int
) -> list[tuple[KeySummary, Row]]:
    """Keys with pending jobs that fit `free`, the best `per_tenant` of each class and tenant, and the tenant's row.

    Walks (class, tenant) pairs by index jumps and probes one head per key, so its cost depends on live keys only,
    never on how many jobs wait behind them.
    """
    rows = tx.rows(
        """WITH RECURSIVE pair AS (
            (SELECT class, tenant_id FROM scheduling_key WHERE live ORDER BY class, tenant_id LIMIT 1)
            UNION ALL
            SELECT n.class, n.tenant_id FROM pair p CROSS JOIN LATERAL (
                SELECT class, tenant_id FROM scheduling_key
                WHERE live AND (class, tenant_id) > (p.class, p.tenant_id) ORDER BY class, tenant_id LIMIT 1) n
        )
        SELECT k.*, t.weight, t.quota_jobs, t.quota_cpus_milli, t.quota_memory_bytes, t.quota_gpus,
            t.quota_gpu_memory_bytes
        FROM pair p JOIN tenant t ON t.id = p.tenant_id AND t.active
        CROSS JOIN LATERAL (
            SELECT k.id, k.tenant_id, k.class, k.priority, k.cpus_milli, k.memory_bytes, k.gpus, k.gpu_memory_bytes,
                k.gpu_model, h.queue_seq, k.low_water
            FROM scheduling_key k CROSS JOIN LATERAL (
                SELECT queue_seq FROM job j
                WHERE j.key_id = k.id AND j.state = 0 AND j.ready AND j.queue_seq >= k.low_water
                ORDER BY queue_seq LIMIT 1) h
            WHERE k.live AND k.class = p.class AND k.tenant_id = p.tenant_id AND k.cpus_milli <= %(cpus)s
                AND k.memory_bytes <= %(memory)s AND k.gpus <= %(gpus)s AND k.runner = ANY(%(runners)s)
                AND (NOT %(external)s OR k.external_ok)
            ORDER BY k.priority DESC, k.low_water LIMIT %(per_tenant)s
        ) k""",
        {
            "cpus": free.cpus_milli,
            "memory": free.memory_bytes,
            "gpus": len(free.gpus),
            "runners": list(runners),
            "external": external,
            "per_tenant": per_tenant,
        },
    )
    return [(_summary(row), row) for row in rows]


def idle_keys(tx: Tx, limit: int, after: int) -> list[int]:
    """Live keys in turn from `after`, locked FOR UPDATE; those in use by others are left out."""
    return [
        row[0]
        for row in tx.rows(
            """SELECT id FROM scheduling_key WHERE live AND id > %(after)s ORDER BY id LIMIT %(limit)s
            FOR UPDATE SKIP LOCKED""",
            {"limit": limit, "after": after},
        )
    ]


def settle_keys(tx: Tx, keys: Sequence[int]) -> int:
    """Raises `low_water` to each key's head, and ends keys without ready jobs; how many ended.

    The keys must be locked FOR UPDATE in an earlier statement, so that this one sees all their jobs.
    """
    rows = tx.rows(
        """UPDATE scheduling_key k SET live = h.head IS NOT NULL, low_water = COALESCE(h.head, k.low_water)
        FROM (SELECT i.id, (SELECT queue_seq FROM job j WHERE j.key_id = i.id AND j.state = 0 AND j.ready
                ORDER BY queue_seq LIMIT 1) AS head FROM unnest(%(keys)s::bigint[]) AS i (id)) h
        WHERE k.id = h.id AND (h.head IS NULL OR h.head > k.low_water + 50) RETURNING k.live""",
        {"keys": list(keys)},
    )
    return sum(not row[0] for row in rows)


def _columns(tenant_id: UUID, shapes: Sequence[Shape]) -> dict[str, object]:
    names = ("class", "priority", "runner", "external_ok", "cpus", "memory", "gpus", "gpu_memory", "model")
    return {"tenant": tenant_id, **{name: [shape[i] for shape in shapes] for i, name in enumerate(names)}}


def _summary(row: Row) -> KeySummary:
    return KeySummary(
        id=row.id,
        tenant_id=row.tenant_id,
        priority_class=PriorityClass(row[2]),
        priority=row.priority,
        shape=Resources(row.cpus_milli, row.memory_bytes, row.gpus, row.gpu_memory_bytes, row.gpu_model),
        head_seq=row.queue_seq,
        low_water=row.low_water,
    )
