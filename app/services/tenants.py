"""Tenants: found by name or id, made, changed, listed, and what each holds now. Whoever calls decides who may."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any
from uuid import UUID, uuid4

from app.domain.errors import FieldProblem, Invalid, NotFound
from app.domain.tenant import (
    NewTenant,
    Quota,
    Tenant,
    Tier,
    Usage,
    as_id,
    change_problems,
    name_problem,
    new_problems,
    normal_name,
    room_left,
)
from app.storage import quota_holds
from app.storage import tenants as stored
from app.storage.database import Database, Row

__all__ = [
    "NewTenant", "Quota", "Tenant", "Tier", "Usage", "change", "create", "find", "get", "list_tenants", "of_row",
    "room_left", "usage_of", "usages_of",
]  # fmt: skip


def find(db: Database, name_or_id: str) -> Tenant | None:
    """The tenant with this id or exactly this name, or None. Takes any text."""
    tenant_id, name = as_id(name_or_id), normal_name(name_or_id)
    if tenant_id is None and name_problem(name) is not None:
        return None
    with db.transaction("read") as tx:
        row = stored.by_name(tx, name) if tenant_id is None else stored.by_id(tx, tenant_id)
    return None if row is None else of_row(row)


def get(db: Database, tenant_id: UUID) -> Tenant:
    """One tenant. Raises NotFound."""
    with db.transaction("read") as tx:
        row = stored.by_id(tx, tenant_id)
    if row is None:
        raise NotFound("Tenant not found", tenant_id=str(tenant_id))
    return of_row(row)


def create(db: Database, asked: NewTenant) -> Tenant:
    """Makes a tenant. Raises Invalid, also when the name is taken."""
    problems = new_problems(asked)
    if problems:
        raise Invalid(problems=problems)
    name = normal_name(asked.name)
    with db.transaction("tenant") as tx:
        row = stored.insert(tx, {**_columns(asdict(asked)), "id": uuid4(), "name": name})
    if row is None:
        raise Invalid(problems=[FieldProblem("name", f"there is a tenant {name!r} already; choose another name")])
    return of_row(row)


def change(db: Database, tenant_id: UUID, changes: Mapping[str, Any]) -> Tenant:
    """Sets the fields of `changes` (of Tenant; `quota` maps the limits to change, None is unlimited) and no others.

    Nothing that runs is touched: under a lowered quota, or inactive, a tenant only starts nothing more. A lowered limit
    holds for every claim that commits after this returns; the first limit of a tenant, and being inactive, for those
    that begin after it. Jobs keep the tier they were submitted under. Ring the bells after it: raised limits let jobs
    start. Raises Invalid, NotFound.
    """
    problems = change_problems(changes)
    if problems:
        raise Invalid(problems=problems)
    with db.transaction("tenant") as tx:
        if "quota" in changes:
            stored.lock_quota(tx, tenant_id)
            # It was kept of the quota as it was; the next plan keeps what fits the new one.
            quota_holds.forget(tx, tenant_id)
        row = stored.update(tx, tenant_id, _columns(changes))
    if row is None:
        raise NotFound("Tenant not found", tenant_id=str(tenant_id))
    return of_row(row)


def list_tenants(db: Database, limit: int = 1000, offset: int = 0) -> tuple[list[Tenant], int]:
    """Tenants in the order of their names, with the number of all."""
    with db.transaction("read") as tx:
        return [of_row(row) for row in stored.page(tx, limit, offset)], stored.count(tx)


def usage_of(db: Database, tenant_id: UUID) -> Usage:
    """What the tenant holds now."""
    return usages_of(db, [tenant_id])[tenant_id]


def usages_of(db: Database, tenants: Sequence[UUID]) -> dict[UUID, Usage]:
    """What each of these tenants holds now."""
    with db.transaction("read") as tx:
        rows = {row.tenant_id: row for row in stored.usages(tx, tenants)}
    names = tuple(asdict(Usage()))
    return {
        tenant: Usage(**{name: int(getattr(rows[tenant], name)) for name in names}) if tenant in rows else Usage()
        for tenant in tenants
    }


def of_row(row: Row) -> Tenant:
    """A row of the table as a Tenant."""
    return Tenant(
        id=row.id,
        name=row.name,
        email=row.email,
        organization=row.organization,
        tier=Tier(row.tier),
        weight=row.weight,
        quota=Quota(
            jobs=row.quota_jobs,
            cpus_milli=row.quota_cpus_milli,
            memory_bytes=row.quota_memory_bytes,
            gpus=row.quota_gpus,
            gpu_memory_bytes=row.quota_gpu_memory_bytes,
        ),
        allow_preemption=row.allow_preemption,
        can_preempt_others=row.can_preempt_others,
        active=row.active,
        created_at=row.created_at,
    )


def _columns(values: Mapping[str, Any]) -> dict[str, Any]:
    limits = {f"quota_{name}": limit for name, limit in values.get("quota", {}).items()}
    return {name: value for name, value in values.items() if name not in {"quota", "name"}} | limits
