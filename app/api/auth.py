"""Who asks, and whether they may: bearer tokens, roles, and what a server without tokens demands instead.

An `Authenticator` turns a request into a Principal or raises Unauthorized; one for signed tokens can stand beside the
static one without a change elsewhere.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import urlsplit
from uuid import UUID

from flask import Flask, Request, current_app, g, request

from app.api.errors import Forbidden, Unauthorized
from app.domain.job import DEFAULT_TENANT
from config.settings import Settings, SettingsError

USER, EXECUTOR, OPERATOR, ADMIN = "user", "executor", "operator", "admin"
ALL_ROLES = frozenset({USER, EXECUTOR, OPERATOR, ADMIN})

View = TypeVar("View", bound=Callable[..., Any])


@dataclass(frozen=True)
class Principal:
    """The caller: the tenant whose jobs it sees, what it may do, and its name for records."""

    tenant_id: UUID
    roles: frozenset[str]
    subject: str


class Authenticator(Protocol):
    """Turns a request into its Principal."""

    def authenticate(self, request: Request) -> Principal:
        """Who asks. Raises Unauthorized."""


class StaticToken:
    """One token of one machine; whoever has it may do everything."""

    def __init__(self, token: str) -> None:
        self._token = token.encode()

    def authenticate(self, request: Request) -> Principal:
        """The machine's own principal, by `Authorization: Bearer`; pages of a browser (`browsable`) also by Basic."""
        header = request.headers.get("Authorization", "")
        scheme, _, given = header.partition(" ")
        if scheme.lower() == "basic" and request.authorization and _rule(request, "_browsable", False):
            given, scheme = request.authorization.password or "", "bearer"
        if scheme.lower() != "bearer" or not given.strip():
            raise Unauthorized()
        # Header values arrive as Latin-1 text; compare_digest refuses non-ASCII str, so bytes are compared.
        if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token):
            raise Unauthorized("The bearer token is not valid.")
        return Principal(DEFAULT_TENANT, ALL_ROLES, "token")


class LoopbackOnly:
    """No tokens: everyone on this machine may do everything, but no web page in a browser on it may.

    The Host header must be a loopback name (a page that rebinds its own name to 127.0.0.1 sends that name), and an
    Origin, which browsers add to every cross-site write, must be a loopback one too.
    """

    def authenticate(self, request: Request) -> Principal:
        """The local principal. Raises Forbidden for a foreign Host or Origin."""
        host = request.headers.get("Host", "")
        if not is_loopback_name(_host_part(host)):
            raise Forbidden(
                f"The Host header {host[:100]!r} is not a loopback name; without auth only those are served."
            )
        origin = request.headers.get("Origin")
        if origin is not None and not is_loopback_name(_host_part(urlsplit(origin).netloc)):
            raise Forbidden(f"Pages of {origin[:100]!r} may not use this server; it serves without auth.")
        return Principal(DEFAULT_TENANT, ALL_ROLES, "local")


def authenticator(settings: Settings) -> Authenticator:
    """The authenticator that the settings ask for. Raises SettingsError if they leave the API open or useless."""
    if settings.auth == "off":
        if not is_loopback_name(settings.api_host):
            raise SettingsError(
                f"CFAB_AUTH=off works on a loopback address only, not on CFAB_API_HOST={settings.api_host!r}: "
                "anyone who reaches the port could run programs here"
            )
        return LoopbackOnly()
    if not settings.api_token:
        raise SettingsError("CFAB_API_TOKEN (or CFAB_API_TOKEN_FILE) is empty: nobody could use the API; set a token")
    return StaticToken(settings.api_token)


def install(app: Flask, who: Authenticator, settings: Settings) -> None:
    """Checks every request of `app` first of all: 401 comes before any 404; 403 after 404 and 405."""

    def check() -> None:
        if _rule(request, "_public", _never)(settings):
            return
        try:
            g.principal = who.authenticate(request)
        except Unauthorized as exc:
            if _rule(request, "_browsable", False):
                exc.headers = {"WWW-Authenticate": 'Basic realm="cfab", Bearer realm="cfab"'}
            raise
        if request.routing_exception is not None:
            return
        needed: Collection[str] = _rule(request, "_roles", (USER,))
        if not g.principal.roles.intersection(needed) and ADMIN not in g.principal.roles:
            raise Forbidden(f"This needs the role {' or '.join(needed)}.")

    app.before_request(check)


def principal() -> Principal:
    """The caller of the current request."""
    return cast(Principal, g.principal)


def needs(*roles: str) -> Callable[[View], View]:
    """Marks a view as open to callers with one of `roles` (default: user; an admin may always)."""
    return _marks("_roles", roles)


def public(when: Callable[[Settings], bool]) -> Callable[[View], View]:
    """Marks a view as open to everyone where the settings are so."""
    return _marks("_public", when)


def always(_: Settings) -> bool:
    """For `public`: whatever the settings are."""
    return True


def _never(_: Settings) -> bool:
    return False


def browsable(view: View) -> View:
    """Marks a read-only view as usable from a browser, which can send the token as a Basic password only."""
    return _marks("_browsable", True)(view)


def is_loopback_name(host: str) -> bool:
    """Whether `host` (no port, no brackets) is `localhost` or a loopback address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _marks(name: str, value: object) -> Callable[[View], View]:
    def mark(view: View) -> View:
        setattr(view, name, value)
        return view

    return mark


def _rule(request: Request, name: str, default: Any) -> Any:
    view = current_app.view_functions.get(request.endpoint or "")
    return getattr(view, name, default)


def _host_part(netloc: str) -> str:
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    host, colon, port = netloc.partition(":")
    return host if not colon or port.isdigit() else ""
