"""What the claims of a token mean here: roles and tenant, wherever an issuer puts them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.api.auth.principal import ALL_ROLES

MAX_TENANT = 255


@dataclass(frozen=True)
class ClaimNames:
    """Where an issuer puts what matters here.

    Names may be paths, such as `realm_access.roles`. `role_prefix` marks the roles that are meant for this service:
    with `fabric-`, the word `fabric-admin` makes an admin, and an `admin` of something else does not.
    """

    tenant: str = "tenant"
    roles: str = "roles"
    role_prefix: str = ""


def roles_of(claims: Mapping[str, Any], names: ClaimNames) -> frozenset[str]:
    """The known roles; the claim is a list of words, or one text with spaces between them. Others are ignored."""
    value = look_up(claims, names.roles)
    words = value.split() if isinstance(value, str) else value if isinstance(value, list) else []
    prefix = names.role_prefix
    return ALL_ROLES.intersection(
        word.removeprefix(prefix) for word in words if isinstance(word, str) and word.startswith(prefix)
    )


def tenant_of(claims: Mapping[str, Any], names: ClaimNames) -> str | None:
    """The tenant's name or id as the token says it; None when it says none that could be one."""
    value = look_up(claims, names.tenant)
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TENANT:
        return None
    return value


def look_up(claims: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None. A claim whose own name has dots (a URL) is found by that name first."""
    if path in claims:
        return claims[path]
    for place, letter in enumerate(path):
        if letter != ".":
            continue
        inner = claims.get(path[:place])
        if isinstance(inner, Mapping):
            found = look_up(inner, path[place + 1 :])
            if found is not None:
                return found
    return None
