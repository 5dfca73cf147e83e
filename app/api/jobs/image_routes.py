"""Routes about what a tenant's images must be: an admin changes it, who sees the tenant sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from app.api.answers import json_answer
from app.api.auth import ADMIN, OPERATOR, USER, needs
from app.api.hub import hub
from app.api.jobs import schemas
from app.api.jobs.blueprint import blueprint
from app.api.jobs.image_schemas import TrustChanges, TrustShown
from app.api.jobs.tenant_routes import visible_tenant
from app.api.limits import limited
from app.domain.image_trust import ImageTrust, TrustedKey
from app.services.image_trust import change_trust, trust_of
from app.services.public_keys import fingerprint


@blueprint.route("/tenants/<tenant>/images", methods=["GET"], tags=["tenants"])
@limited("admin")
@needs(USER, OPERATOR)
@blueprint.response(200, TrustShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show what a tenant's images must be")
def show_trust(tenant: str) -> Response:
    """Its policy, the keys it trusts, where images may come from, and the names of its registry credentials."""
    return json_answer(_shown(trust_of(hub().db, visible_tenant(tenant).id)[1]))


@blueprint.route("/tenants/<tenant>/images", methods=["PATCH"], tags=["tenants"])
@limited("admin")
@needs(ADMIN)
@blueprint.arguments(TrustChanges())
@blueprint.response(200, TrustShown)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="A field is wrong, or a key cannot be read")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Change what a tenant's images must be")
def change_images(asked: Mapping[str, Any], tenant: str) -> Response:
    """Counts for every submit and every start from now on, waiting jobs included; what runs goes on."""
    changes = dict(asked)
    if "keys" in changes:
        changes["keys"] = tuple(TrustedKey(key["name"], key["pem"]) for key in changes["keys"])
    return json_answer(_shown(change_trust(hub().db, visible_tenant(tenant).id, changes)))


def _shown(trust: ImageTrust) -> dict[str, Any]:
    return {
        "policy": trust.policy,
        "effective_policy": trust.policy or hub().settings.image_signatures,
        "keys": [{"name": key.name, "pem": key.pem, "sha256": fingerprint(key.pem)} for key in trust.keys],
        "repositories": list(trust.repositories),
        "credentials": dict(trust.credentials),
    }
