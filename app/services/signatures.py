"""Signatures that cosign made with a key pair, as it stores them in registries: which trusted key signed an image.

A signature is a layer of the image `sha256-<hex>.sig` beside the signed one: the layer is the signed payload, and an
annotation is the signature over its bytes. Nothing in a payload is believed before the signature over it was checked.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any

from app.domain.errors import Refused
from app.domain.image_name import BadImageName, ImageName, parse_image_name
from app.domain.image_trust import TrustedKey
from app.services.public_keys import is_signed_by
from app.services.registry import NotThere, Registry, Tampered

ANNOTATION = "dev.cosignproject.cosign/signature"
TYPE = "cosign container image signature"
MAX_SIGNATURES = 50
MAX_PAYLOAD = 64 << 10
MAX_REASONS = 3
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


def find_signer(
    registry: Registry, name: ImageName, digest: str, keys: Sequence[TrustedKey], places: Sequence[str]
) -> TrustedKey:
    """The trusted key that signed the image with this digest, as one that lies in `places` (none: as `name` itself).

    One good signature is enough, whatever else is there. Raises Refused, which says what each of them lacked, and what
    the registry raises.
    """
    tag = f"{digest.replace(':', '-')}.sig"
    try:
        manifest = registry.manifest(tag)
    except NotThere as exc:
        raise Refused(f"it has no signature (there is no {name.repository}:{tag})") from exc
    reasons: dict[str, None] = {}
    for layer in _layers(manifest.content):
        try:
            return _signer(registry, layer, name, digest, keys, places)
        except (Refused, NotThere, Tampered) as exc:
            reasons[str(exc)] = None
    raise Refused("; ".join(list(reasons)[:MAX_REASONS]) or "what is stored as its signature holds none")


def _layers(manifest: bytes) -> list[Any]:
    try:
        layers = json.loads(manifest)["layers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    return layers[:MAX_SIGNATURES] if isinstance(layers, list) else []


def _signer(
    registry: Registry, layer: Any, name: ImageName, digest: str, keys: Sequence[TrustedKey], places: Sequence[str]
) -> TrustedKey:
    try:
        signature = base64.b64decode(layer["annotations"][ANNOTATION], validate=True)
        stored = str(layer["digest"])
    except (ValueError, KeyError, TypeError) as exc:
        raise Refused("what is stored as its signature holds none that cosign makes with a key") from exc
    if not _DIGEST.match(stored):
        raise Refused("its signature names no payload by a sha256")
    payload = registry.blob(stored, MAX_PAYLOAD)
    signer = next((key for key in keys if is_signed_by(key.pem, signature, payload)), None)
    if signer is None:
        names = ", ".join(key.name for key in keys)
        raise Refused(f"its signature was made by none of the trusted keys ({names})")
    _check_claims(payload, name, digest, places)
    return signer


def _check_claims(payload: bytes, name: ImageName, digest: str, places: Sequence[str]) -> None:
    """What the signer has said must be about this image, under a name that it may have."""
    try:
        critical = json.loads(payload)["critical"]
        kind, about = critical["type"], critical["image"]["docker-manifest-digest"]
        identity = str(critical["identity"]["docker-reference"])
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Refused("what was signed is not a statement about an image") from exc
    if kind != TYPE:
        raise Refused(f"what was signed is not a statement about an image but {str(kind)[:80]!a}")
    if about != digest:
        raise Refused(f"its signature is about another image ({str(about)[:80]!a})")
    try:
        signed = parse_image_name(identity)
    except BadImageName as exc:
        raise Refused(f"it was signed without a name that can be read ({identity[:80]!a})") from exc
    if not places and signed.repository != name.repository:
        raise Refused(f"it was signed as {signed.repository}, not as {name.repository}")
    if places and not any(signed.lies_in(place) for place in places):
        raise Refused(f"it was signed as {signed.repository}, which lies in none of {', '.join(places)}")
