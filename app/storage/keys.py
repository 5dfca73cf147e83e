"""Scheduling keys: found or made at submit, summed up for `choose`, swept when idle.

A key's `low_water` lets the walk over its pending jobs start past dead index entries. Whoever makes a job ready holds
its key FOR KEY SHARE first; the sweep takes FOR UPDATE, so it can never pass a job that is about to appear.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from app.domain.policy import KeySummary
from app.domain.priority import PriorityClass
from app.domain.resources import Free, Resources
from app.storage.database import Row, Tx

Shape = tuple[int, int, str, bool, int, int, int, int, str, int, bool]
"""class, priority, runner, external_ok, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, gpu_model, members,
gpu_shared."""

PROBE = 4
"""How many waiting jobs of a key are looked at: fewer than this are known exactly, more count as enough."""

_COLUMNS = """class, priority, runner, external_ok, cpus_milli, memory_bytes, gpus, gpu_memory_bytes, gpu_model,
    members, gpu_shared"""
_SHAPES = """unnest(%(class)s::smallint[], %(priority)s::int[], %(runner)s::text[], %(external_ok)s::bool[],
    %(cpus)s::bigint[], %(memory)s::bigint[], %(gpus)s::int[], %(gpu_memory)s::bigint[], %(model)s::text[],
    %(members)s::smallint[], %(shared)s::bool[])"""


def find_keys(tx: Tx, tenant_id: UUID, shapes: Sequence[Shape]) -> dict[Shape, int]:
    """Ids of the live keys among `shapes`, each locked FOR KEY SHARE till the end of the transaction."""
    if len(shapes) == 1:
        # Planned in a third of the time, and most submits are of one job.
        row = tx.row(
            f"SELECT id FROM scheduling_key WHERE tenant_id = %(tenant)s AND live AND ({_COLUMNS}) = %(shape)s"
            " FOR KEY SHARE",
            {"tenant": tenant_id, "shape": shapes[0]},
        )
        return {} if row is None else {shapes[0]: row[0]}
    rows = tx.rows(
        f"""SELECT id, {_COLUMNS} FROM scheduling_key
        WHERE tenant_id = %(tenant)s AND live AND ({_COLUMNS}) IN (SELECT * FROM {_SHAPES})
        ORDER BY id FOR KEY SHARE""",
        _columns(tenant_id, shapes),
    )
    return {tuple(row[1:]): row[0] for row in rows}


def make_keys(tx: Tx, tenant_id: UUID, shapes: Iterable[Shape]) -> dict[Shape, int]:
    """Makes or revives keys; their ids. In a fixed order, so that two makers cannot wait for each other.

    A new one is as old as the next job, so that keys come in the order of their oldest jobs from the first. An older
    job comes to it by `revive_keys` only.
    """
    rows = tx.rows(
        f"""INSERT INTO scheduling_key AS k (tenant_id, {_COLUMNS}, low_water)
        SELECT %(tenant)s, s.*, (SELECT last_value FROM job_queue_seq) FROM {_SHAPES} AS s
        ON CONFLICT ON CONSTRAINT uq_scheduling_key_shape DO UPDATE SET live = true RETURNING id, {_COLUMNS}""",
        _columns(tenant_id, sorted(shapes)),
    )
    return {tuple(row[1:]): row[0] for row in rows}


def shape_at(key: Row, priority_class: int, priority: int) -> Shape:
    """The shape of a key's row at another class and priority."""
    rest: Any = tuple(key._mapping[name] for name in _COLUMNS.replace(",", " ").split()[2:])
    return (int(priority_class), priority, *rest)


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
        """WITH behind AS MATERIALIZED (
            SELECT k.id, h.head FROM scheduling_key k
            JOIN unnest(%(keys)s::bigint[], %(heads)s::bigint[]) AS h (id, head) ON h.id = k.id
            WHERE NOT k.live OR k.low_water > h.head ORDER BY k.id FOR NO KEY UPDATE OF k)
        UPDATE scheduling_key k SET live = true, low_water = LEAST(k.low_water, b.head)
        FROM behind b WHERE k.id = b.id""",
        params,
    )


def candidates(
    tx: Tx,
    priority_class: PriorityClass,
    free: Free,
    runners: Sequence[str],
    external: bool,
    node_id: str,
    shy: str | None,
    passed: Iterable[int],
    per_tenant: int,
    limit: int,
    tenants: Sequence[UUID] | None = None,
) -> list[tuple[KeySummary, Row]]:
    """Up to `limit` keys of a class with pending jobs that fit `free`, the best `per_tenant` of each tenant.

    Each with its tenant's row and what the tenant uses (`used_jobs` …). Tenants come in the order of their ids, or as
    `tenants` names them and no others. Keys in `passed` are left out, retries that are not for `node_id` now, and with
    `shy` jobs that this node held before. Whatever cannot be taken (its GPUs are of another kind, its tenant's quota is
    used up) is left out here already, or it would hide what can be taken behind it. Walks from tenant to tenant by
    index jumps and probes PROBE heads per key until `limit` rows are found, so its cost depends on live keys only,
    never on how many jobs wait behind them. Quotas are read without a lock: the claim decides on locked ones.
    """
    well = [gpu for gpu in free.gpus if gpu.healthy]
    whole = [gpu for gpu in well if not gpu.held_bytes]
    shared = [gpu for gpu in well if gpu.sharing]
    rows = tx.rows(
        """SELECT * FROM claimable_keys(%(class)s::smallint, %(tenants)s::uuid[], %(cpus)s, %(memory)s,
            %(gpu_memory)s::bigint[], %(gpu_models)s::text[], %(slices)s::bigint[], %(slice_models)s::text[],
            %(runners)s::text[], %(external)s, %(node)s, %(shy)s, %(passed)s::bigint[],
            %(probe)s, %(per_tenant)s, %(limit)s)""",
        {
            "class": int(priority_class),
            "tenants": None if tenants is None else list(tenants),
            "cpus": free.cpus_milli,
            "memory": free.memory_bytes,
            "gpu_memory": [gpu.memory_bytes for gpu in whole],
            "gpu_models": [gpu.model.lower() for gpu in whole],
            "slices": [gpu.free_bytes for gpu in shared],
            "slice_models": [gpu.model.lower() for gpu in shared],
            "runners": list(runners),
            "external": external,
            "node": node_id,
            "shy": shy,
            "passed": list(passed),
            "probe": PROBE,
            "per_tenant": per_tenant,
            "limit": limit,
        },
    )
    return [(_summary(row), row) for row in rows]


def waiting_tenants(tx: Tx, priority_class: PriorityClass) -> Sequence[Row]:
    """All active tenants with live keys in a class: weight, what they use (`used_jobs` …) and used before (`average`).

    `low_water` tells about how old the next job of each is. Walks by index jumps and reads no job.
    """
    return tx.rows("SELECT * FROM waiting_tenants(%(class)s::smallint)", {"class": int(priority_class)})


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
    names = ("class", "priority", "runner", "external_ok", "cpus", "memory", "gpus", "gpu_memory", "model", "members",
             "shared")  # fmt: skip
    return {"tenant": tenant_id, **{name: [shape[i] for shape in shapes] for i, name in enumerate(names)}}


def _summary(row: Row) -> KeySummary:
    return KeySummary(
        id=row.id,
        tenant_id=row.tenant_id,
        priority_class=PriorityClass(row[2]),
        priority=row.priority,
        shape=Resources(
            row.cpus_milli, row.memory_bytes, row.gpus, row.gpu_memory_bytes, row.gpu_model, row.gpu_shared
        ),
        head_seq=row.queue_seq,
        low_water=row.low_water,
        waiting=row.waiting if row.waiting < PROBE else None,
    )
