"""An image registry's HTTP API (Docker Registry v2, OCI distribution), as far as manifests and small blobs go.

Everything it returns was hashed here: a digest is never believed, it is computed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urljoin, urlsplit

from app.domain.image_name import DOCKER_HUB
from app.services.outbound import NotAllowed, Reach, Reply, Unreachable, ask

MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
MAX_MANIFEST = 4 << 20
MAX_TOKEN = 1 << 20
MAX_REDIRECTS = 3
_HUB_AT = "registry-1.docker.io"
_PARAMETER = re.compile(r'([A-Za-z]+)="([^"]*)"')


class RegistryAway(Exception):
    """The registry does not answer, or not sensibly; asking again later may help."""


class RegistryRefused(Exception):
    """The registry denies it, or may not be asked; asking again does not help."""


class NotThere(RegistryRefused):
    """The registry has no such thing."""


class Tampered(RegistryRefused):
    """What the registry returned is not what its digest says."""


@dataclass(frozen=True)
class Login:
    """What a registry is signed in at with; never shown."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def as_engine_takes_it(self, registry: str) -> dict[str, str]:
        """The Docker Engine's form of it."""
        if self.identity_token:
            return {"identitytoken": self.identity_token, "serveraddress": registry}
        return {"username": self.username, "password": self.password, "serveraddress": registry}

    @property
    def basic(self) -> str:
        """The value of a basic Authorization header."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Manifest:
    """A manifest's exact bytes, and the digest of them."""

    digest: str
    content: bytes


class Registry:
    """One repository of one registry, asked by one login, within one deadline. Not for several threads at once."""

    def __init__(self, registry: str, path: str, login: Login | None, reach: Reach, timeout_s: float) -> None:
        """Asks nothing yet. All requests together may take `timeout_s`."""
        self._place = _HUB_AT if registry == DOCKER_HUB else registry
        self._path = path
        self._login = login
        self._reach = reach
        self._deadline = time.monotonic() + timeout_s
        self._authorization = ""

    def manifest(self, reference: str) -> Manifest:
        """The manifest of a tag or a digest. Raises NotThere, Tampered, RegistryRefused, RegistryAway."""
        reply = self._get(f"manifests/{quote(reference, safe=':')}", MAX_MANIFEST, {"Accept": MANIFESTS})
        digest = _sha256(reply.body)
        told = reference if reference.startswith("sha256:") else reply.header("docker-content-digest")
        if told.startswith("sha256:") and told != digest:
            raise Tampered(f"the manifest that {self._place} calls {told} is in truth {digest}")
        return Manifest(digest, reply.body)

    def blob(self, digest: str, cap_bytes: int) -> bytes:
        """A blob that is no larger than `cap_bytes`. Raises as `manifest` does."""
        reply = self._get(f"blobs/{digest}", cap_bytes, {})
        if _sha256(reply.body) != digest:
            raise Tampered(f"the blob that {self._place} calls {digest} is in truth {_sha256(reply.body)}")
        return reply.body

    def _get(self, what: str, cap_bytes: int, headers: Mapping[str, str]) -> Reply:
        url = f"{self._reach.scheme(self._place)}://{self._place}/v2/{self._path}/{what}"
        reply = self._ask(url, cap_bytes, headers, self._authorization)
        if reply.status == 401 and not self._authorization:
            self._authorization = self._sign_in(reply)
            if self._authorization:
                reply = self._ask(url, cap_bytes, headers, self._authorization)
        for _ in range(MAX_REDIRECTS):
            if reply.status not in (301, 302, 303, 307, 308):
                break
            # To a storage elsewhere: it gets no credentials of the registry's.
            url = urljoin(url, reply.header("location"))
            reply = self._ask(url, cap_bytes, headers, "")
        return self._good(reply, what)

    def _good(self, reply: Reply, what: str) -> Reply:
        if reply.status == 200:
            return reply
        said = _said(reply)
        if reply.status == 404:
            raise NotThere(f"{self._place} has no {self._path} {what}: {said}")
        if reply.status in (401, 403):
            how = "denies these credentials" if self._login else "denies it to those who do not sign in"
            raise RegistryRefused(f"{self._place} {how}: {said}")
        raise RegistryAway(f"{self._place} answers {reply.status}: {said}")

    def _ask(
        self, url: str, cap_bytes: int, headers: Mapping[str, str], authorization: str, body: bytes | None = None
    ) -> Reply:
        sent = {**headers, "Authorization": authorization} if authorization else headers
        try:
            method = "GET" if body is None else "POST"
            return ask(method, url, sent, self._reach, cap_bytes, self._deadline, body)
        except NotAllowed as exc:
            raise RegistryRefused(str(exc)) from exc
        except (Unreachable, ValueError) as exc:
            raise RegistryAway(str(exc)) from exc

    def _sign_in(self, reply: Reply) -> str:
        """The Authorization that a refusal asks for; empty where there is none to be had."""
        for challenge in reply.headers.get("www-authenticate", []):
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "bearer":
                return self._token(dict(_PARAMETER.findall(rest)))
            if scheme.lower() == "basic" and self._login is not None and not self._login.identity_token:
                return self._login.basic
        return ""

    def _token(self, asked: Mapping[str, str]) -> str:
        realm = asked.get("realm", "")
        if not realm:
            raise RegistryAway(f"{self._place} names no place to sign in at")
        if self._reach.scheme(self._place) == "https" and urlsplit(realm).scheme != "https":
            raise RegistryRefused(f"{self._place} wants the credentials sent without TLS")
        query = {name: asked[name] for name in ("service", "scope") if name in asked}
        form = None
        headers: dict[str, str] = {}
        if self._login is not None and self._login.identity_token:
            grant = {"grant_type": "refresh_token", "refresh_token": self._login.identity_token}
            form = urlencode({**query, **grant, "client_id": "compute-fabric"}).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            url = realm
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        basic = self._login.basic if self._login is not None and form is None else ""
        reply = self._good(self._ask(url, MAX_TOKEN, headers, basic, form), "token")
        try:
            found = json.loads(reply.body)
            return f"Bearer {found.get('token') or found['access_token']}"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise RegistryAway(f"{self._place} gave no token to sign in with") from exc


def _sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _said(reply: Reply) -> str:
    """The first of the registry's own errors, in a line."""
    try:
        first = json.loads(reply.body)["errors"][0]
        text = f"{first.get('code', '')}: {first.get('message', '')}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        text = f"HTTP status {reply.status}"
    return "".join(one if one.isprintable() else " " for one in text[:300])
