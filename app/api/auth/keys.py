"""An issuer's public keys, read from a JWKS (RFC 7517): only those that fit the algorithms that the settings name.

A key is bound to its algorithms when it is read, so that no header of a token can use it with another one.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

log = logging.getLogger(__name__)

MAX_KEYS = 100
MIN_RSA_BITS = 2048
MAX_NAME = 256
_CURVES = {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}
# d: private; k: a shared secret, with which whoever may check a token could also make one.
_PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


class BadKeys(ValueError):
    """The text is no JWKS; the message says why."""


@dataclass(frozen=True)
class Key:
    """One public key. `ends_at` is a unix time from which it is no longer trusted."""

    id: str | None
    algorithms: frozenset[str]
    public: jwt.PyJWK
    ends_at: float = math.inf


class KeySet:
    """The usable keys of one JWKS."""

    def __init__(self, keys: Sequence[Key] = ()) -> None:
        self._keys = tuple(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, algorithm: str, key_id: str | None, now: float) -> Sequence[Key]:
        """The keys that a token of this header may be signed with: none, one, or several that share an id.

        A token that names no key is checked only where there is no choice.
        """
        fitting = [key for key in self._keys if algorithm in key.algorithms and now < key.ends_at]
        if key_id is None:
            return fitting if len(fitting) == 1 else []
        return [key for key in fitting if key.id == key_id]


def parse_keys(text: bytes, algorithms: Collection[str]) -> KeySet:
    """The keys of a JWKS that fit `algorithms`; the others are left out and logged, by name and reason.

    Raises BadKeys when the text is no JWKS at all.
    """
    try:
        document = json.loads(text.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as exc:
        raise BadKeys("it is not JSON") from exc
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise BadKeys('it has no list "keys"')
    if len(listed) > MAX_KEYS:
        raise BadKeys(f"it has {len(listed)} keys; at most {MAX_KEYS} are read")
    keys = []
    for place, described in enumerate(listed):
        try:
            keys.append(_key(described, algorithms))
        except BadKeys as exc:
            name = described.get("kid") if isinstance(described, dict) else None
            log.warning("key %d (%s) of the issuer's keys is not used: %s", place, ascii(name)[:80], exc)
    return KeySet(keys)


def _key(described: Any, algorithms: Collection[str]) -> Key:
    if not isinstance(described, dict):
        raise BadKeys("it is no object")
    fitting = _algorithms_of(described).intersection(algorithms)
    if not fitting:
        raise BadKeys(f"it fits none of {', '.join(sorted(algorithms))}")
    if _PRIVATE.intersection(described):
        raise BadKeys("it is a private key, which must never be published; replace it")
    operations = described.get("key_ops", ["verify"])
    if described.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        raise BadKeys("it is not meant for signatures")
    name, ends_at = described.get("kid"), described.get("exp", math.inf)
    if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_NAME):
        raise BadKeys(f"its kid is no text of 1 to {MAX_NAME} characters")
    if isinstance(ends_at, bool) or not isinstance(ends_at, int | float) or math.isnan(ends_at):
        raise BadKeys("its exp is no number")
    return Key(name, frozenset(fitting), _public(described, min(fitting)), ends_at)


def _public(described: Mapping[str, Any], algorithm: str) -> jwt.PyJWK:
    try:
        public = jwt.PyJWK.from_dict(dict(described), algorithm)
    # The library lets errors of its parts through: ValueError, TypeError, binascii.Error, KeyError.
    except Exception as exc:
        raise BadKeys(f"it cannot be read ({type(exc).__name__})") from exc
    bits = getattr(public.key, "key_size", MIN_RSA_BITS)
    if described["kty"] == "RSA" and bits < MIN_RSA_BITS:
        raise BadKeys(f"it has {bits} bits; {MIN_RSA_BITS} are needed")
    return public


def _algorithms_of(described: Mapping[str, Any]) -> set[str]:
    """What a key may sign with, by its type and by its own word."""
    kind, curve, said = described.get("kty"), described.get("crv"), described.get("alg")
    possible: set[str] = set()
    if kind == "RSA":
        possible = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
    elif kind == "EC" and isinstance(curve, str) and curve in _CURVES:
        possible = {_CURVES[curve]}
    elif kind == "OKP" and curve == "Ed25519":
        possible = {"EdDSA"}
    # RFC 9864 gave EdDSA with this curve a name of its own; keys may carry either.
    said = "EdDSA" if said == "Ed25519" else said
    return possible if said is None else possible.intersection([said] if isinstance(said, str) else [])
