"""Signed tokens (JWT, RFC 7519 with the advice of RFC 8725): signature, header and claims, each strictly.

PyJWT checks the signature. The claims are checked here, because a library that takes "123", 1e400 or NaN for a time
leaves the question open when such a token ends.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

from app.api.auth.challenge import invalid_token
from app.api.auth.claims import ClaimNames, roles_of, tenant_of
from app.api.auth.keyring import Keyring
from app.api.auth.keys import MAX_NAME, Key
from app.api.auth.principal import Identity
from app.api.auth.verified import Verified, VerifiedTokens
from app.api.errors import Unauthorized
from app.api.strict_json import loads
from app.domain.errors import Invalid

MAX_HEADER_BYTES = 4096
LAST_TIME = 253_402_300_799
"""The end of the year 9999; a later time is a mistake, or a token that never ends."""

_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_TYPES = frozenset({"jwt", "at+jwt"})
# What Keycloak writes into the claims of tokens that are not for an API.
_OTHER_USES = frozenset({"id", "refresh", "offline", "logout", "initialaccesstoken"})


@dataclass(frozen=True)
class Issuer:
    """Whose tokens are accepted. `types`: allowed words of the header `typ`; empty: JWT, at+jwt or none."""

    name: str
    audiences: frozenset[str]
    algorithms: frozenset[str]
    leeway_s: float = 10.0
    types: frozenset[str] = frozenset()
    max_bytes: int = 8192
    claims: ClaimNames = ClaimNames()


class SignedTokens:
    """Verifies tokens of one issuer."""

    def __init__(self, issuer: Issuer, keyring: Keyring, clock: Callable[[], float] = time.time) -> None:
        self._issuer, self._keyring, self._clock = issuer, keyring, clock
        self._jws = jwt.PyJWS(algorithms=sorted(issuer.algorithms))
        self._verified = VerifiedTokens()

    def identify(self, token: str) -> Identity | None:
        """Whose token it is; None for what has not the shape of a signed token.

        Raises Unauthorized when it cannot be accepted, KeysAway when there are no keys to check it with.
        """
        if len(token) > self._issuer.max_bytes:
            raise invalid_token(f"The token is longer than {self._issuer.max_bytes} bytes.")
        known = self._verified.get(token)
        if known is None or not self._is_trusted(known):
            if not _SHAPE.fullmatch(token):
                return None
            known = self._verify(token)
            self._verified.put(token, known)
        return self._identity(self._check_claims(known.claims))

    def _is_trusted(self, known: Verified) -> bool:
        return any(key is known.key for key in self._keyring.find(known.algorithm, known.key_id))

    def _verify(self, token: str) -> Verified:
        algorithm, key_id = self._check_header(_header(token))
        keys = self._keyring.find(algorithm, key_id)
        if not keys:
            raise invalid_token("The key that signed the token is not known.")
        key, payload = self._payload(token, algorithm, keys)
        return Verified(algorithm, key_id, key, _object(payload))

    def _check_header(self, header: Mapping[str, Any]) -> tuple[str, str | None]:
        """The algorithm and the key's id. Keys and addresses of keys in the header are never looked at."""
        algorithm, key_id, kind = header.get("alg"), header.get("kid"), header.get("typ")
        if not isinstance(algorithm, str) or algorithm not in self._issuer.algorithms:
            raise invalid_token("The algorithm of the token is not accepted.")
        if "crit" in header or "b64" in header:
            raise invalid_token("The token demands extensions that are not known here.")
        if "cty" in header:
            raise invalid_token("The token holds another token; send that one.")
        if key_id is not None and not (isinstance(key_id, str) and 0 < len(key_id) <= MAX_NAME):
            raise invalid_token("The kid of the token is not usable.")
        if kind is not None and not isinstance(kind, str):
            raise invalid_token("The typ of the token is not usable.")
        word = (kind or "").lower().removeprefix("application/")
        if word not in self._issuer.types if self._issuer.types else word and word not in _TYPES:
            raise invalid_token("The token is of a type that is not accepted here.")
        return algorithm, key_id

    def _payload(self, token: str, algorithm: str, keys: Sequence[Key]) -> tuple[Key, bytes]:
        for key in keys:
            try:
                return key, self._jws.decode_complete(token, key.public.key, algorithms=[algorithm])["payload"]
            except jwt.InvalidSignatureError:
                continue
            except (jwt.PyJWTError, ValueError, TypeError) as exc:
                raise invalid_token("The token is malformed.") from exc
        raise invalid_token("The signature of the token is not valid.")

    def _check_claims(self, claims: Mapping[str, Any]) -> Mapping[str, Any]:
        issuer, now = self._issuer, self._clock()
        ends, issued = _time(claims, "exp"), _time(claims, "iat")
        if claims.get("iss") != issuer.name:
            raise invalid_token("The token is of another issuer.")
        if not issuer.audiences.intersection(_words(claims.get("aud"))):
            raise invalid_token("The token is for another audience.")
        if now >= ends + issuer.leeway_s:
            raise invalid_token("The token has expired.")
        if issued > now + issuer.leeway_s:
            raise invalid_token("The token was issued in the future; compare the clocks.")
        if "nbf" in claims and _time(claims, "nbf") > now + issuer.leeway_s:
            raise invalid_token("The token is not valid yet.")
        if str(claims.get("typ", "")).lower() in _OTHER_USES:
            raise invalid_token("The token is no access token.")
        return claims

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        subject = claims.get("sub")
        if not isinstance(subject, str) or not 0 < len(subject) <= MAX_NAME or not subject.isprintable():
            raise invalid_token("The token names no usable subject (sub).")
        names = self._issuer.claims
        ends_at = _time(claims, "exp") + self._issuer.leeway_s
        return Identity(roles_of(claims, names), subject, tenant_of(claims, names), ends_at)


def _header(token: str) -> Mapping[str, Any]:
    text = token.partition(".")[0]
    if len(text) > MAX_HEADER_BYTES:
        raise invalid_token("The header of the token is too long.")
    try:
        return _object(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, ValueError) as exc:
        raise invalid_token("The token is malformed.") from exc


def _object(text: bytes) -> Mapping[str, Any]:
    """A JSON object without doubled keys, NaN or numbers beyond measure: two readers must not read it differently."""
    try:
        value = loads(text)
    except Invalid as exc:
        raise _malformed() from exc
    if not isinstance(value, dict):
        raise _malformed()
    return value


def _malformed() -> Unauthorized:
    return invalid_token("The token is malformed.")


def _time(claims: Mapping[str, Any], name: str) -> float:
    """A claim that is a time in unix seconds."""
    value = claims.get(name)
    if value is None:
        raise invalid_token(f"The token has no {name}.")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid_token(f"The {name} of the token is no number.")
    if not 0 < value <= LAST_TIME:
        raise invalid_token(f"The {name} of the token is out of range.")
    return float(value)


def _words(audience: Any) -> Collection[str]:
    if isinstance(audience, str):
        return [audience]
    if isinstance(audience, list) and all(isinstance(word, str) for word in audience):
        return audience
    return []
