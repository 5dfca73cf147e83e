"""For whom a caller of the gpu contract asks."""

from __future__ import annotations

from uuid import UUID

from app.api.auth import ADMIN, principal
from app.api.gpu.translate import tenant_key
from app.api.hub import hub
from app.domain.errors import NotFound
from app.domain.tenant import Tenant
from app.services import inspect, tenants


def owner_of(job_id: UUID, role: str) -> UUID:
    """The tenant for which the caller asks about a job: the job's, for callers with `role`, else their own."""
    caller = principal()
    return caller.tenant_id if caller.roles.isdisjoint({role, ADMIN}) else inspect.owner_of(hub().db, job_id)


def tenant_asked(name: str | None, role: str) -> Tenant:
    """The tenant that is named, or the caller's own. Another's is for callers with `role`; to others it is unknown."""
    db, caller = hub().db, principal()
    if name is None:
        return tenants.get(db, caller.tenant_id)
    found = tenants.find(db, tenant_key(name))
    if found is None or (found.id != caller.tenant_id and caller.roles.isdisjoint({role, ADMIN})):
        raise NotFound("Tenant not found", tenant=name[:100])
    return found
