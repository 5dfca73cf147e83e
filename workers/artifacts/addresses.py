"""Which network addresses a download may go to, and the lookup that checks every one of them.

It must not know URLs, HTTP or files. The rules are the domain's.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from app.domain import addresses
from app.domain.addresses import IPAddress as IPAddress
from workers.artifacts.errors import FetchFailed, UrlRefused
from workers.artifacts.policy import FetchPolicy

Resolver = Callable[..., Sequence[tuple[Any, ...]]]
"""Called as `socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)` and answers in its form."""


@dataclass(frozen=True)
class Endpoint:
    """One checked socket address: connect to exactly this, never to the name again."""

    family: int
    sockaddr: tuple[Any, ...]


def refusal(address: IPAddress, policy: FetchPolicy) -> str | None:
    """Why `policy` forbids `address`, in words that follow "which is"; None if it is allowed."""
    return addresses.refusal(address, policy.allow_loopback, policy.allow_private)


def resolve(host: str, port: int, policy: FetchPolicy, resolver: Resolver) -> list[Endpoint]:
    """Look `host` up once and return its endpoints, each allowed by `policy`, in the resolver's order.

    One forbidden address refuses the whole answer: a name that also points inside is either an attack or a
    mistake. Raises UrlRefused, or FetchFailed (retryable) when the name cannot be looked up.
    """
    try:
        answer = resolver(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as exc:
        raise UrlRefused(f"host {host!r} is not a valid name: {exc}") from exc
    except OSError as exc:
        raise FetchFailed(f"host {host!r} could not be looked up: {exc}") from exc
    endpoints: list[Endpoint] = []
    for family, _type, _protocol, _name, sockaddr in answer:
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        address = ip_address(sockaddr[0])
        reason = refusal(address, policy)
        if reason is not None:
            raise UrlRefused(f"host {host!r} has the address {address}, which is {reason}")
        endpoint = Endpoint(family, tuple(sockaddr))
        if endpoint not in endpoints:
            endpoints.append(endpoint)
    if not endpoints:
        raise FetchFailed(f"host {host!r} has no IPv4 or IPv6 address")
    return endpoints
