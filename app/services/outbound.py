"""HTTP requests that users can direct: to checked addresses only, with a cap on bytes and one deadline for everything.

Knows no registries. The standard library's client is used, for it reads no proxy settings, no .netrc and no cookies.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from app.domain.addresses import refusal

CONNECT_S = 5.0
USER_AGENT = "compute-fabric"


class Unreachable(Exception):
    """The server did not answer, or not in time; asking again later may help."""


class NotAllowed(Exception):
    """This server may not be asked from here, whatever it would answer."""


@dataclass(frozen=True)
class Reach:
    """Whom requests may go to besides public addresses: `inside` (host:port), of which `plain` ones speak no TLS."""

    inside: frozenset[str] = frozenset()
    plain: frozenset[str] = frozenset()
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context, repr=False)

    def scheme(self, place: str) -> str:
        """How a server (host or host:port) is spoken to."""
        return "http" if place in self.plain else "https"


@dataclass(frozen=True)
class Reply:
    """A whole answer; header names are in lower case, several of a name in a list."""

    status: int
    headers: Mapping[str, list[str]]
    body: bytes

    def header(self, name: str) -> str:
        """The first header of that name; empty when there is none."""
        return self.headers.get(name, [""])[0]


def ask(
    method: str,
    url: str,
    headers: Mapping[str, str],
    reach: Reach,
    cap_bytes: int,
    deadline: float,
    body: bytes | None = None,
) -> Reply:
    """Sends one request and returns the answer, following no redirect. `deadline` is on the monotonic clock.

    Raises NotAllowed for an address that may not be asked, Unreachable, and ValueError for what is no URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        raise NotAllowed(f"{url[:200]!r} is not an http or https address without a password")
    if parts.scheme == "http" and parts.netloc not in reach.plain:
        raise NotAllowed(
            f"{parts.netloc} is to be asked over plain http; CFAB_REGISTRY_HOSTS must name it with http://"
        )
    tls = reach.tls if parts.scheme == "https" else None
    port = parts.port or (443 if tls is not None else 80)
    sock = _connected(parts.hostname, port, parts.netloc in reach.inside, deadline)
    # A duplicate, for TLS takes the socket object over; it still ends the same connection.
    watched = sock.dup()
    hangup = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [watched])
    hangup.daemon = True
    hangup.start()
    connection = http.client.HTTPConnection(parts.hostname, port)
    try:
        if tls is not None:
            sock = tls.wrap_socket(sock, server_hostname=parts.hostname)
        connection.sock = sock
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", "Connection": "close", **headers}
        connection.request(method, path, body, {**sent, "Host": parts.netloc})
        return _read(connection.getresponse(), cap_bytes, parts.netloc)
    except (OSError, http.client.HTTPException, AttributeError) as exc:
        late = " in time" if time.monotonic() >= deadline else ""
        raise Unreachable(f"{parts.netloc} did not answer{late}: {exc or type(exc).__name__}") from exc
    finally:
        hangup.cancel()
        connection.close()
        sock.close()
        watched.close()


def _read(response: http.client.HTTPResponse, cap_bytes: int, place: str) -> Reply:
    body = response.read(cap_bytes + 1)
    if len(body) > cap_bytes:
        raise NotAllowed(f"the answer of {place} has more than {cap_bytes} bytes")
    if response.length:
        raise Unreachable(f"{place} broke off its answer")
    headers: dict[str, list[str]] = {}
    for name, value in response.getheaders():
        headers.setdefault(name.lower(), []).append(value)
    return Reply(response.status, headers, body)


def _connected(host: str, port: int, inside: bool, deadline: float) -> socket.socket:
    """A connection to an address that was checked: one forbidden address refuses the name as a whole."""
    failure: Exception = TimeoutError("no time was left")
    for family, address in _addresses(host, port, inside):
        left_s = min(CONNECT_S, deadline - time.monotonic())
        if left_s <= 0:
            break
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(left_s)
            sock.connect(address)
            sock.settimeout(max(0.1, deadline - time.monotonic()))
            return sock
        except OSError as exc:
            sock.close()
            failure = exc
    raise Unreachable(f"{host}:{port} cannot be reached: {failure}") from failure


def _addresses(host: str, port: int, inside: bool) -> list[tuple[int, Any]]:
    try:
        answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:
        raise Unreachable(f"{host} could not be looked up: {exc}") from exc
    found: list[tuple[int, Any]] = []
    for family, _type, _protocol, _name, address in answer:
        reason = refusal(ip_address(address[0]), allow_loopback=inside, allow_private=inside)
        if reason is not None:
            hint = "" if inside else "; an operator can name it in CFAB_REGISTRY_HOSTS"
            raise NotAllowed(f"{host} has an address that is {reason}{hint}")
        found.append((family, address))
    return found


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
