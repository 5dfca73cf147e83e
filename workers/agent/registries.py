"""Credentials of image registries on this node, from a file as `docker login` writes it."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.containers.reference import DEFAULT_HOST, BadReference, parse_reference

log = logging.getLogger(__name__)

_DEFAULT_KEYS = ("https://index.docker.io/v1/", "index.docker.io", DEFAULT_HOST)


def credentials_for(image: str, path: str) -> dict[str, str] | None:
    """What the engine signs in with at an image's registry; None where the file names none for it.

    The file is read each time, so that new credentials need no restart. One that cannot be read is logged, without what
    is in it, and counts as empty.
    """
    if not path:
        return None
    try:
        host = parse_reference(image).host
        known = json.loads(Path(path).read_text("utf-8"))["auths"]
        keys = _DEFAULT_KEYS if host == DEFAULT_HOST else (host, f"https://{host}", f"https://{host}/")
        entry = next((known[key] for key in keys if key in known), None)
        return None if entry is None else _read(entry, host)
    except BadReference:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        log.error("the registry credentials in %s cannot be used: %s", path, type(exc).__name__)
        return None


def _read(entry: Mapping[str, Any], host: str) -> dict[str, str]:
    if entry.get("identitytoken"):
        return {"identitytoken": str(entry["identitytoken"]), "serveraddress": host}
    user, password = entry.get("username"), entry.get("password")
    if user is None or password is None:
        user, _, password = base64.b64decode(entry["auth"], validate=True).decode().partition(":")
    return {"username": str(user), "password": str(password), "serveraddress": host}
