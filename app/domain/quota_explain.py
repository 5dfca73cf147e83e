"""What of its tenant keeps a job waiting: its quota, and what is kept of it for another job. Pure, like explain.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from uuid import UUID

from app.domain import amounts
from app.domain.explain import Cause, Code, TenantNow
from app.domain.resources import Resources
from app.domain.tenant import Excess, Usage, amount, excess, room_left


def quota_causes(tenant: TenantNow, need: Resources, members: int = 1, job_id: UUID | None = None) -> list[Cause]:
    """What of the tenant stands against `members` more allocations of `need` for a job; empty exactly when claims find
    room for it, or for a gang the planner."""
    name = tenant.name
    if not tenant.active:
        message = f"Tenant {name} is not active: none of its jobs start until an admin activates it."
        return [Cause(Code.TENANT_INACTIVE, message, {"tenant": name})]
    never = excess(tenant.quota, need, members)
    if never:
        told = [f"{amount(one.name, one.need)} (at most {amount(one.name, one.limit)})" for one in never]
        message = f"The job asks more than tenant {name} may ever hold: {amounts.listed(told)}."
        return [Cause(Code.QUOTA_NEVER, message, {"tenant": name, "limits": _limits(tenant, never)})]
    now = excess(room_left(tenant.quota, tenant.used), need, members)
    if now:
        message = f"Tenant {name} holds {_held(tenant, now)}; this job asks {_more(now)} more."
        if tenant.kept_for is not None and tenant.kept_for == job_id:
            message += " What comes free is kept for it: it has waited too long."
        return [Cause(Code.QUOTA, message, {"tenant": name, "limits": _limits(tenant, now)})]
    return _kept_causes(tenant, need, members, job_id)


def _kept_causes(tenant: TenantNow, need: Resources, members: int, job_id: UUID | None) -> list[Cause]:
    """The quota has room, of which some is kept for one job; claims leave that alone, whoever's turn it is."""
    if tenant.kept_for is None or (members > 1 and tenant.kept_for == job_id):
        return []
    kept, used = asdict(tenant.kept), asdict(tenant.used)
    both = Usage(**{name: used[name] + kept[name] for name in used})
    beside = excess(room_left(tenant.quota, both), need, members)
    if not beside:
        return []
    limits = {name: {**one, "kept": kept[name]} for name, one in _limits(tenant, beside).items()}
    numbers = {"tenant": tenant.name, "limits": limits, "kept_for": str(tenant.kept_for)}
    if tenant.kept_for == job_id:
        message = (
            f"Tenant {tenant.name}'s quota is kept for this job and has room for it now: the scheduler starts it as"
            " soon as a node has."
        )
        return [Cause(Code.RESERVED, message, numbers)]
    needs = amounts.listed([amount(name, one["kept"]) for name, one in limits.items()])
    message = (
        f"Tenant {tenant.name} holds {_held(tenant, beside)}, and what is left is kept for job {tenant.kept_for}, which"
        f" has waited too long and needs {needs}; this job asks {_more(beside)} more."
    )
    return [Cause(Code.QUOTA_KEPT, message, numbers)]


def _held(tenant: TenantNow, broken: Sequence[Excess]) -> str:
    return amounts.listed([_of(name, one["used"], one["limit"]) for name, one in _limits(tenant, broken).items()])


def _more(broken: Sequence[Excess]) -> str:
    return amounts.listed([amount(one.name, one.need) for one in broken])


def _limits(tenant: TenantNow, broken: Sequence[Excess]) -> dict[str, dict[str, int]]:
    """Of each broken limit: what it is, what of it is held, and what one more job asks."""
    return {
        one.name: {
            "limit": getattr(tenant.quota, one.name),
            "used": getattr(tenant.used, one.name),
            "asks": one.need,
        }
        for one in broken
    }


def _of(name: str, used: int, limit: int) -> str:
    """Some of a limit: 4 of 4 GPUs."""
    held, whole = amount(name, used), amount(name, limit)
    number, _, word = held.partition(" ")
    return f"{number} of {whole}" if word.rstrip("s") == whole.partition(" ")[2].rstrip("s") else f"{held} of {whole}"
