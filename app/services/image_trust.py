"""What a tenant's images must be: read, and changed by an admin. Whoever calls decides who may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any
from uuid import UUID

from app.domain.errors import FieldProblem, Invalid, NotFound
from app.domain.image_name import split_registry
from app.domain.image_trust import ImagePolicy, ImageTrust, TrustedKey, trust_problems
from app.services.public_keys import BadKey, read_key
from app.storage import image_trust as stored
from app.storage.database import Database, Row


def trust_of(db: Database, tenant_id: UUID) -> tuple[str, ImageTrust]:
    """The tenant's name and what its images must be. Raises NotFound, Unavailable."""
    with db.transaction("read") as tx:
        row = stored.of_tenant(tx, tenant_id)
    if row is None:
        raise NotFound("Tenant not found", tenant_id=str(tenant_id))
    return row.name, _of_row(row)


def change_trust(db: Database, tenant_id: UUID, changes: Mapping[str, Any]) -> ImageTrust:
    """Sets the fields of `changes` (of ImageTrust, each as a whole) and no others; what holds then.

    It counts for every submit and every start after it; what runs goes on. Raises Invalid, NotFound.
    """
    problems = trust_problems(changes) or _unreadable(changes)
    if problems:
        raise Invalid(problems=problems)
    with db.transaction("tenant") as tx:
        row = stored.of_tenant(tx, tenant_id) if stored.lock(tx, tenant_id) else None
        if row is None:
            raise NotFound("Tenant not found", tenant_id=str(tenant_id))
        trust = replace(_of_row(row), **_normal(changes))
        keys = [asdict(key) for key in trust.keys]
        stored.write(tx, tenant_id, trust.policy, keys, trust.repositories, trust.credentials)
    return trust


def _unreadable(changes: Mapping[str, Any]) -> list[FieldProblem]:
    problems = []
    for place, key in enumerate(changes.get("keys", ())):
        try:
            read_key(key.pem)
        except BadKey as exc:
            problems.append(FieldProblem(f"keys[{place}].pem", str(exc)))
    return problems


def _normal(changes: Mapping[str, Any]) -> dict[str, Any]:
    normal = dict(changes)
    if changes.get("policy") is not None:
        normal["policy"] = ImagePolicy(changes["policy"])
    if "repositories" in changes:
        normal["repositories"] = tuple(dict.fromkeys(_normal_place(place) for place in changes["repositories"]))
    if "credentials" in changes:
        normal["credentials"] = {_normal_place(at): name for at, name in changes["credentials"].items()}
    return normal


def _normal_place(place: str) -> str:
    """One spelling for Docker's own registry, which has several names."""
    registry, slash, rest = place.partition("/")
    return split_registry(f"{registry}/x/y")[0] + slash + rest


def _of_row(row: Row) -> ImageTrust:
    return ImageTrust(
        policy=None if row.policy is None else ImagePolicy(row.policy),
        keys=tuple(TrustedKey(str(key["name"]), str(key["pem"])) for key in row.keys or ()),
        repositories=tuple(row.repositories or ()),
        credentials=dict(row.credentials or {}),
    )
