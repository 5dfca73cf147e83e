"""Tenants: rows found, made, changed, listed; what each holds on all nodes together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx

_QUOTAS = ("jobs", "cpus_milli", "memory_bytes", "gpus", "gpu_memory_bytes")
_NAMES = (
    "email", "organization", "tier", "weight", *(f"quota_{name}" for name in _QUOTAS), "allow_preemption",
    "can_preempt_others", "active",
)  # fmt: skip
_COLUMNS = ", ".join(("id", "name", *_NAMES, "created_at"))


def by_id(tx: Tx, tenant_id: UUID) -> Row | None:
    """One tenant's row."""
    return tx.row(f"SELECT {_COLUMNS} FROM tenant WHERE id = %(id)s", {"id": tenant_id})


def by_name(tx: Tx, name: str) -> Row | None:
    """The row of the tenant with exactly this name."""
    return tx.row(f"SELECT {_COLUMNS} FROM tenant WHERE name = %(name)s", {"name": name})


def insert(tx: Tx, values: Mapping[str, Any]) -> Row | None:
    """Makes a tenant of `id`, `name` and all changeable columns; its row, or None when the name is taken."""
    names = ("id", "name", *_NAMES)
    return tx.row(
        f"""INSERT INTO tenant ({", ".join(names)}) VALUES ({", ".join(f"%({name})s" for name in names)})
        ON CONFLICT (name) DO NOTHING RETURNING {_COLUMNS}""",
        values,
    )


def update(tx: Tx, tenant_id: UUID, values: Mapping[str, Any]) -> Row | None:
    """Sets columns; the row as it is then, or None when there is no such tenant."""
    unknown = values.keys() - set(_NAMES)
    if unknown:
        raise ValueError(f"no columns to change: {sorted(unknown)}")
    sets = ", ".join(f"{name} = %({name})s" for name in sorted(values)) or "name = name"
    return tx.row(
        f"UPDATE tenant SET {sets} WHERE id = %(tenant_id)s RETURNING {_COLUMNS}", {**values, "tenant_id": tenant_id}
    )


def lock_quota(tx: Tx, tenant_id: UUID) -> None:
    """Waits for the tenant's quota lock: no claim decides about its quota until this transaction ends."""
    tx.run("SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %(id)s::uuid, 71))", {"id": tenant_id})


def page(tx: Tx, limit: int, offset: int) -> Sequence[Row]:
    """Tenants in the order of their names."""
    return tx.rows(
        f"SELECT {_COLUMNS} FROM tenant ORDER BY name LIMIT %(limit)s OFFSET %(offset)s",
        {"limit": limit, "offset": offset},
    )


def count(tx: Tx) -> int:
    """How many tenants there are."""
    return int(tx.value("SELECT count(*) FROM tenant"))


def usages(tx: Tx, tenants: Sequence[UUID]) -> Sequence[Row]:
    """What each of these tenants holds on all nodes together; no row for one that never held anything."""
    return tx.rows(
        f"""SELECT tenant_id, {", ".join(f"sum({name})::bigint AS {name}" for name in _QUOTAS)}
        FROM usage WHERE tenant_id = ANY(%(tenants)s::uuid[]) GROUP BY tenant_id""",
        {"tenants": list(tenants)},
    )
