"""Credentials of image registries, by reference: read from files that an operator put on this host, when needed.

A tenant's credential NAME is the file `<tenant>/<NAME>.json` of CFAB_REGISTRY_CREDENTIALS_DIR, in the form that
`docker login` writes (`auths`). Nothing that was read is kept, logged or shown.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from app.domain.image_name import DOCKER_HUB
from app.services.registry import Login

log = logging.getLogger(__name__)

_HUB_KEYS = ("https://index.docker.io/v1/", "https://index.docker.io/v1", "index.docker.io", DOCKER_HUB)
_UNUSABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


class LoginMissing(Exception):
    """A credential that a tenant names is not on this host, or cannot be read here."""


class Chosen(NamedTuple):
    """What to sign in with; `owner` is the tenant's id when the credential is its own, else everyone may use it."""

    login: Login | None
    owner: str


def login_for(
    registry: str, tenant_id: UUID, tenant: str, credentials: Mapping[str, str], directory: str, shared_file: str
) -> Chosen:
    """The tenant's own credential for `registry`, else this host's for everybody (`shared_file`), else none.

    Files are read each time, so that new ones need no restart. Raises LoginMissing when the tenant names a credential
    that cannot be used here: to go on without it could only mislead.
    """
    name = credentials.get(registry)
    if name is None:
        return Chosen(_shared(registry, shared_file), "")
    told = f"the registry credential {name!r} of tenant {tenant}"
    if not directory:
        raise LoginMissing(f"{told} is not here: CFAB_REGISTRY_CREDENTIALS_DIR is not set on this host")
    for folder in (tenant, str(tenant_id)):
        path = Path(directory) / folder / f"{name}.json"
        try:
            found = read_login(path, registry)
        except FileNotFoundError:
            continue
        except _UNUSABLE as exc:
            raise LoginMissing(f"{told} cannot be read on this host ({type(exc).__name__})") from exc
        if found is None:
            raise LoginMissing(f"{told} does not name {registry} on this host")
        return Chosen(found, str(tenant_id))
    raise LoginMissing(f"{told} is not on this host")


def read_login(path: Path, registry: str) -> Login | None:
    """What a file as `docker login` writes it holds for a registry. Raises OSError, ValueError, KeyError, TypeError."""
    known = json.loads(path.read_text("utf-8"))["auths"]
    keys = _HUB_KEYS if registry == DOCKER_HUB else (registry, f"https://{registry}", f"https://{registry}/")
    entry: Mapping[str, Any] | None = next((known[key] for key in keys if key in known), None)
    if entry is None:
        return None
    if entry.get("identitytoken"):
        return Login(identity_token=str(entry["identitytoken"]))
    user, password = entry.get("username"), entry.get("password")
    if user is None or password is None:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    return Login(str(user), str(password))


def _shared(registry: str, path: str) -> Login | None:
    if not path:
        return None
    try:
        return read_login(Path(path), registry)
    except _UNUSABLE as exc:
        log.error("the registry credentials in %s cannot be used: %s", path, type(exc).__name__)
        return None
