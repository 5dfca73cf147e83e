"""An issuer of tokens for tests: real keys, tokens as good or as bad as a test wants them, and its keys over HTTP."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

ISSUER, AUDIENCE = "https://issuer.example.com/", "cfab"


@cache
def private_key(kind: str, number: int = 0) -> Any:
    """A private key; the same one each time for a kind and a number."""
    if kind.startswith("rsa"):
        return rsa.generate_private_key(65537, int(kind.removeprefix("rsa") or 2048))
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key({"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}[kind])


def jwk(private: Any, key_id: str | None = None, **members: Any) -> dict[str, Any]:
    """The public key as a JWK."""
    public = private.public_key()
    for algorithm, kind in ((RSAAlgorithm, rsa.RSAPublicKey), (ECAlgorithm, ec.EllipticCurvePublicKey)):
        if isinstance(public, kind):
            described = algorithm.to_jwk(public, as_dict=True)  # type: ignore[attr-defined]
            break
    else:
        described = OKPAlgorithm.to_jwk(public, as_dict=True)
    described.pop("key_ops", None)
    return {**described, **({"kid": key_id} if key_id else {}), **members}


def pem(private: Any) -> bytes:
    """The public key as PEM."""
    form: bytes = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return form


def encode(part: Any) -> str:
    """base64url of JSON, or of bytes as they are."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def claims(**changes: Any) -> dict[str, Any]:
    """Good claims of a user of tenant `acme`; a change to None removes one."""
    now = int(time.time())
    good = {
        "iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": now, "exp": now + 600, "tenant": "acme", "roles": ["user"],
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


@dataclass
class Issuer:
    """One key that signs with one algorithm under one id."""

    algorithm: str = "ES256"
    kind: str = "p256"
    key_id: str | None = "key-1"
    number: int = 0

    @property
    def private(self) -> Any:
        """The private key."""
        return private_key(self.kind, self.number)

    def jwk(self, **members: Any) -> dict[str, Any]:
        """The public key with its id."""
        return jwk(self.private, self.key_id, **members)

    def token(self, headers: dict[str, Any] | None = None, **changes: Any) -> str:
        """A token with good claims but for the changes."""
        return self.signed(claims(**changes), headers)

    def signed(self, payload: Any, headers: dict[str, Any] | None = None) -> str:
        """A token with any payload (bytes as they are) and any header members; a member None is left out."""
        own = {"alg": self.algorithm, "typ": "JWT", "kid": self.key_id, **(headers or {})}
        head = {name: value for name, value in own.items() if value is not None}
        text = f"{encode(head)}.{encode(payload)}"
        signature = jwt.PyJWS().get_algorithm_by_name(self.algorithm).sign(text.encode(), self.private)
        return f"{text}.{encode(signature)}"


def key_set(*keys: dict[str, Any]) -> bytes:
    """A JWKS."""
    return json.dumps({"keys": list(keys)}).encode()


@dataclass
class KeyServer:
    """A JWKS over HTTP that counts its requests, and is slow, wrong or away when a test says so."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    asked: int = 0
    hold: threading.Event | None = None
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


@contextmanager
def key_server(body: bytes = b"") -> Iterator[KeyServer]:
    """A server on a free loopback port."""
    told = KeyServer(body)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked += 1
            told.seen.append(dict(self.headers))
            if told.hold is not None:
                told.hold.wait(20)
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/jwks"
    try:
        yield told
    finally:
        if told.hold is not None:
            told.hold.set()
        server.shutdown()
        thread.join()
        server.server_close()
