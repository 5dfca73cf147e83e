"""Routes about tenants: an admin makes and changes them, an operator sees all, everyone else sees their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from app.api.answers import json_answer
from app.api.auth import ADMIN, OPERATOR, USER, needs, principal
from app.api.hub import hub
from app.api.jobs import schemas
from app.api.jobs.blueprint import blueprint
from app.api.jobs.tenant_schemas import TenantAsked, TenantChanges, TenantsAsked, TenantShown
from app.api.jobs.tenant_translate import changes, new_tenant, tenant_shown
from app.api.limits import limited
from app.domain.errors import NotFound
from app.domain.priority import PriorityClass
from app.domain.tenant import Tenant, Usage
from app.services import tenants

_STARTS_JOBS = frozenset({"quota", "active"})


@blueprint.route("/tenants", methods=["POST"], tags=["tenants"])
@limited("admin")
@needs(ADMIN)
@blueprint.arguments(TenantAsked())
@blueprint.response(201, TenantShown)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="A field is wrong, or the name is taken")
@blueprint.doc(summary="Make a tenant")
def make_tenant(asked: Mapping[str, Any]) -> Response:
    """A tenant without a tier is medium; without a quota it may hold as much as there is."""
    return json_answer(tenant_shown(tenants.create(hub().db, new_tenant(asked)), Usage()), 201)


@blueprint.route("/tenants", methods=["GET"], tags=["tenants"])
@limited("admin")
@needs(USER, OPERATOR)
@blueprint.arguments(TenantsAsked(), location="query")
@blueprint.response(200, TenantShown(many=True), headers={"X-Total-Count": {"schema": {"type": "integer"}}})
@blueprint.doc(summary="List tenants")
def list_tenants(asked: Mapping[str, Any]) -> Response:
    """By name, each with what it holds now: all of them for operators, else the caller's own."""
    db = hub().db
    if _sees_all():
        listed, total = tenants.list_tenants(db, asked["limit"], asked["offset"])
    else:
        own = [tenants.get(db, principal().tenant_id)]
        listed, total = own[asked["offset"] :][: asked["limit"]], 1
    used = tenants.usages_of(db, [tenant.id for tenant in listed])
    return json_answer(
        [tenant_shown(tenant, used[tenant.id]) for tenant in listed], headers={"X-Total-Count": str(total)}
    )


@blueprint.route("/tenants/<tenant>", methods=["GET"], tags=["tenants"])
@limited("admin")
@needs(USER, OPERATOR)
@blueprint.response(200, TenantShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a tenant, by name or id")
def show_tenant(tenant: str) -> Response:
    """What it may hold and what it holds now. Another tenant than the caller's is for operators."""
    found = visible_tenant(tenant)
    return json_answer(tenant_shown(found, tenants.usage_of(hub().db, found.id)))


@blueprint.route("/tenants/<tenant>", methods=["PATCH"], tags=["tenants"])
@limited("admin")
@needs(ADMIN)
@blueprint.arguments(TenantChanges())
@blueprint.response(200, TenantShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Change a tenant, by name or id")
def change_tenant(asked: Mapping[str, Any], tenant: str) -> Response:
    """What runs goes on: under a lowered quota, or inactive, a tenant only starts nothing more until it fits again."""
    shared = hub()
    changed = tenants.change(shared.db, visible_tenant(tenant).id, changes(asked))
    if _STARTS_JOBS & asked.keys():
        shared.ring(PriorityClass)
    return json_answer(tenant_shown(changed, tenants.usage_of(shared.db, changed.id)))


def _sees_all() -> bool:
    return not principal().roles.isdisjoint({OPERATOR, ADMIN})


def visible_tenant(text: str) -> Tenant:
    """The tenant that a path names. Another's is as unknown to a user as one that does not exist."""
    found = tenants.find(hub().db, text)
    if found is None or (found.id != principal().tenant_id and not _sees_all()):
        raise NotFound("Tenant not found", tenant=text[:100])
    return found
