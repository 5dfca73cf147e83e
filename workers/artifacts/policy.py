"""What a host may download: schemes, hosts, address ranges, sizes and times.

Values only. It knows nothing of sockets, and nothing of where its values were configured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_KNOWN_SCHEMES = frozenset({"http", "https"})
_HOST_PATTERN = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?|[0-9a-f:.]*:[0-9a-f:.]*")


@dataclass(frozen=True, kw_only=True)
class FetchPolicy:
    """The limits of every download; immutable, so one value can be shared by all threads.

    `hosts` is empty for any public host, or holds exact names, addresses, and patterns such as
    `*.example.com` (which matches every name below example.com, not example.com itself). `timeout_s` bounds a
    whole fetch with its redirects, `connect_timeout_s` one connection, `read_timeout_s` one silence of the
    server. Raises ValueError for values that make no sense.
    """

    schemes: frozenset[str] = frozenset({"https", "http"})
    hosts: tuple[str, ...] = ()
    allow_loopback: bool = False
    allow_private: bool = False
    max_bytes: int
    timeout_s: float
    connect_timeout_s: float = 10.0
    read_timeout_s: float = 30.0
    max_redirects: int = 5

    def __post_init__(self) -> None:
        unknown = self.schemes - _KNOWN_SCHEMES
        if unknown or not self.schemes:
            raise ValueError(f"schemes must be some of http and https, not {sorted(self.schemes)}")
        for pattern in self.hosts:
            if not _HOST_PATTERN.fullmatch(pattern.lower()):
                raise ValueError(f"host pattern {pattern!r} must be a name, an address or *.name alone")
        for name in ("max_bytes", "timeout_s", "connect_timeout_s", "read_timeout_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)!r}")
        if self.max_redirects < 0:
            raise ValueError(f"max_redirects must be 0 or more, not {self.max_redirects!r}")

    def permits_host(self, host: str) -> bool:
        """Whether the list admits `host` (lower case, no final dot). Says nothing of its addresses."""
        if not self.hosts:
            return True
        return any(_matches(host, pattern.lower()) for pattern in self.hosts)


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern
