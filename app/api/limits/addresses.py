"""The address a request is counted under."""

from __future__ import annotations

import ipaddress

from flask import Flask, Request
from werkzeug.middleware.proxy_fix import ProxyFix

IPV6_SITE_BITS = 64
"""A host has a whole /64 to send from, so its addresses count as one."""


def caller_address(asked: Request) -> str:
    """The caller's IPv4 address, or its IPv6 network; `unknown` where the server has none (a Unix socket)."""
    try:
        address = ipaddress.ip_address((asked.remote_addr or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, IPV6_SITE_BITS), strict=False).network_address)
    return str(address)


def trust_proxies(app: Flask, count: int) -> None:
    """Believes the last `count` entries of X-Forwarded-For, each written by a proxy of ours; 0: none of it.

    Nobody else's entry may count: a caller could write any address there.
    """
    if count:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=count, x_proto=0, x_host=0, x_port=0, x_prefix=0
        )
