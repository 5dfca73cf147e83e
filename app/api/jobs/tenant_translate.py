"""Tenants in the jobs contract's words and units on one side, in the domain's on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.api.answers import utc
from app.domain.resources import MIB
from app.domain.tenant import NewTenant, Quota, Tenant, Usage

MB = 10**6
_UNITS = {
    "jobs": ("jobs", 1),
    "cpus": ("cpus_milli", 1000),
    "memory_mib": ("memory_bytes", MIB),
    "gpus": ("gpus", 1),
    "gpu_memory_mb": ("gpu_memory_bytes", MB),
}


def new_tenant(asked: Mapping[str, Any]) -> NewTenant:
    """A parsed body as the domain's ask."""
    rest = {name: value for name, value in asked.items() if name != "quota"}
    return NewTenant(**rest, quota=Quota(**_limits(asked.get("quota", {}))))


def changes(asked: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed body as the service's changes."""
    quota = {"quota": _limits(asked["quota"])} if "quota" in asked else {}
    return {**asked, **quota}


def _limits(asked: Mapping[str, Any]) -> dict[str, int | None]:
    def stored(shown: Any, unit: int) -> int | None:
        return None if shown is None else round(shown * unit)

    return {_UNITS[name][0]: stored(value, _UNITS[name][1]) for name, value in asked.items()}


def tenant_shown(tenant: Tenant, usage: Usage) -> dict[str, Any]:
    """Everything about a tenant."""
    return {
        "id": str(tenant.id),
        "name": tenant.name,
        "email": tenant.email,
        "organization": tenant.organization,
        "tier": tenant.tier.value,
        "weight": tenant.weight,
        "active": tenant.active,
        "allow_preemption": tenant.allow_preemption,
        "can_preempt_others": tenant.can_preempt_others,
        "quota": _amounts(tenant.quota),
        "usage": _amounts(usage),
        "created_at": utc(tenant.created_at),
    }


def _amounts(amounts: Quota | Usage) -> dict[str, int | float | None]:
    return {shown: _amount(getattr(amounts, name), unit) for shown, (name, unit) in _UNITS.items()}


def _amount(value: int | None, unit: int) -> int | float | None:
    if value is None or value % unit == 0:
        return None if value is None else value // unit
    return round(value / unit, 3)
