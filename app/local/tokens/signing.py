"""A signing key and what is made with it: tokens, and the public half that an API is told to trust.

Reads and writes no place of its own; the keys of a stack are in `keys`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from app.local.failure import StackError
from config.settings import Settings

ALGORITHM = "EdDSA"
"""What a new key signs with."""

MAKE_ONE = "`openssl genpkey -algorithm ed25519`"
MIN_RSA_BITS = 2048
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
_NAMED_BY = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}


@dataclass(frozen=True)
class Grant:
    """What a token says."""

    tenant: str
    roles: Sequence[str]
    subject: str
    ttl_s: float


@dataclass(frozen=True)
class Made:
    """A token, when it ends (unix time), and the key that signed it."""

    token: str
    expires_at: int
    key_id: str


class SigningKey:
    """A private key of any kind that a fabric accepts."""

    def __init__(self, private: Any, name: str) -> None:
        self._private = private
        self.algorithm, self._public = _described(private, name)

    @classmethod
    def new(cls) -> SigningKey:
        """A new Ed25519 key."""
        return cls(Ed25519PrivateKey.generate(), "the new key")

    @classmethod
    def read(cls, pem: bytes, name: str) -> SigningKey:
        """The private key of a PEM text. Raises StackError when it is none that can sign tokens."""
        try:
            private = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise StackError(
                f"{name} holds no private key in PEM without a password; make one with {MAKE_ONE}"
            ) from exc
        return cls(private, name)

    @property
    def id(self) -> str:
        """The key's thumbprint (RFC 7638), which is its name in headers and key sets."""
        described = {part: self._public[part] for part in _NAMED_BY[self._public["kty"]]}
        digest = hashlib.sha256(json.dumps(described, sort_keys=True, separators=(",", ":")).encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

    @property
    def pem(self) -> str:
        """The private key as PEM text."""
        form: str = self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        return form

    @property
    def public(self) -> dict[str, Any]:
        """The public key as a JWK."""
        return {**self._public, "kid": self.id, "alg": self.algorithm, "use": "sig"}

    def sign(self, settings: Settings, grant: Grant) -> Made:
        """A token as the settings' issuer would make it, with its claims where the settings look for them."""
        now = int(time.time())
        expires_at = now + math.ceil(grant.ttl_s)
        claims: dict[str, Any] = {}
        _put(claims, settings.auth_tenant_claim, grant.tenant)
        _put(claims, settings.auth_roles_claim, [settings.auth_role_prefix + role for role in grant.roles])
        claims |= {
            "iss": issuer_of(settings), "aud": settings.auth_audience[0], "sub": grant.subject, "jti": str(uuid4()),
            "iat": now, "nbf": now, "exp": expires_at,
        }  # fmt: skip
        kind = settings.auth_token_types[0] if settings.auth_token_types else "JWT"
        headers = {"kid": self.id, "typ": kind}
        return Made(jwt.encode(claims, self._private, self.algorithm, headers), expires_at, self.id)


def issuer_of(settings: Settings) -> str:
    """The name under which a stack signs where no other is set."""
    return settings.auth_issuer or "cfab"


def _described(private: Any, name: str) -> tuple[str, dict[str, Any]]:
    """Algorithm and public JWK of a private key."""
    if isinstance(private, Ed25519PrivateKey):
        return "EdDSA", OKPAlgorithm.to_jwk(private.public_key(), as_dict=True)
    if isinstance(private, EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name], ECAlgorithm.to_jwk(private.public_key(), as_dict=True)
    if isinstance(private, RSAPrivateKey) and private.key_size >= MIN_RSA_BITS:
        described: dict[str, Any] = RSAAlgorithm.to_jwk(private.public_key(), as_dict=True)
        return "RS256", {part: described[part] for part in ("kty", "n", "e")}
    raise StackError(
        f"{name} is of a kind that signs no tokens here; use Ed25519 ({MAKE_ONE}), P-256, or RSA of 2048 bits"
    )


def _put(claims: dict[str, Any], path: str, value: Any) -> None:
    """Writes a claim where a reader of the path finds it; a URL is one name, though it has dots."""
    if "://" in path:
        claims[path] = value
        return
    *outer, last = path.split(".")
    for name in outer:
        claims = claims.setdefault(name, {})
    claims[last] = value
