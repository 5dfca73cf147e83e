"""A server without tokens: everyone on this machine may do everything, but no web page in a browser on it may.

A page reaches a server on its reader's machine by a name of its own that resolves to 127.0.0.1 (the Host header shows
that name), or by plain cross-site requests, which browsers send without asking: forms, images, WebSockets.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from flask import Request

from app.api.auth.marks import rules_for
from app.api.auth.principal import ALL_ROLES, Identity
from app.api.errors import Forbidden, UnsupportedMediaType
from app.domain.job import DEFAULT_TENANT

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
# What a form or a fetch without CORS can send; anything else makes the browser ask first, and is told no.
_SIMPLE_TYPES = frozenset({"text/plain", "application/x-www-form-urlencoded", "multipart/form-data"})


class LoopbackOnly:
    """Everyone is this machine's administrator, as far as no browser was made to ask by somebody else's page."""

    def authenticate(self, request: Request) -> Identity:
        """The local administrator. Raises Forbidden for a foreign Host, Origin or site, UnsupportedMediaType for forms.

        Checked for every method and for WebSockets, which browsers open across sites with no more than an Origin.
        """
        _check_host(request)
        _check_site(request)
        if request.method not in _SAFE and request.mimetype in _SIMPLE_TYPES:
            raise UnsupportedMediaType(
                f"A body declared as {request.mimetype!r} may come from any web page's form; send JSON with the header "
                "`Content-Type: application/json`."
            )
        return Identity(ALL_ROLES, "local", DEFAULT_TENANT)


def is_loopback_name(host: str) -> bool:
    """Whether `host` (no port, no brackets) is `localhost` or a loopback address."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_host(request: Request) -> None:
    host = request.headers.get("Host", "")
    if not is_loopback_name(_host_part(host)):
        raise Forbidden(f"The Host header {host[:100]!r} is not a loopback name; without auth only those are served.")


def _check_site(request: Request) -> None:
    origin = request.headers.get("Origin")
    if origin is not None and not is_loopback_name(_host_part(_netloc(origin))):
        raise Forbidden(f"Pages of {origin[:100]!r} may not use this server; it serves without auth.")
    if request.headers.get("Sec-Fetch-Site", "").strip().lower() != "cross-site":
        return
    # Following a link to the documentation shows it to the reader and to nobody else.
    seen = (request.method, request.headers.get("Sec-Fetch-Mode"), request.headers.get("Sec-Fetch-Dest"))
    if seen != ("GET", "navigate", "document") or not rules_for(request).browsable:
        raise Forbidden("Pages of other sites may not use this server; it serves without auth.")


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _host_part(netloc: str) -> str:
    """The host without brackets and port; nothing for what is no host, such as `[::1].example.com`."""
    if netloc.startswith("["):
        host, _, port = netloc[1:].partition("]")
        return host if not port or (port[0] == ":" and port[1:].isdigit()) else ""
    host, colon, port = netloc.partition(":")
    return host if not colon or port.isdigit() else ""
