"""A URL taken apart strictly, once, so that what was checked is what is asked.

Every URL passes here, the job's own and each redirect's. It opens nothing and looks nothing up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from urllib.parse import quote, quote_from_bytes, urljoin, urlsplit

from workers.artifacts.addresses import IPAddress, refusal
from workers.artifacts.errors import UrlRefused
from workers.artifacts.policy import FetchPolicy

_MAX_URL_CHARS = 8192
_UNSAFE = re.compile(r"[\x00-\x20\x7f\\]")
_AUTHORITY = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]@]+))(?::(?P<port>[0-9]{0,5}))?")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))

# The ports of the Fetch standard ("bad port"): a request could be read as another protocol there.
# fmt: off
_BAD_PORTS = frozenset((
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103,
    104, 109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513,
    514, 515, 526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720,
    1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
))
# fmt: on


@dataclass(frozen=True)
class Target:
    """Where one request goes. `path` includes the query; `address` is set if the host is written as one."""

    scheme: str
    host: str
    port: int
    path: str
    address: IPAddress | None

    @property
    def url(self) -> str:
        """The whole URL in its normal form. It may hold a signature: never log it, log `shown`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.path}"

    @property
    def shown(self) -> str:
        """The URL for people: without its query, which often carries a signature, and not endless."""
        text = self.url.partition("?")[0]
        return text if len(text) <= 200 else text[:197] + "..."


def parse_target(url: str, policy: FetchPolicy) -> Target:
    """Take `url` apart and check all that can be checked without a lookup. Raises UrlRefused."""
    if len(url) > _MAX_URL_CHARS:
        raise UrlRefused(f"the URL has {len(url)} characters; {_MAX_URL_CHARS} are allowed")
    # urlsplit drops tabs and newlines silently, so what it parses would not be what was written.
    if _UNSAFE.search(url):
        raise UrlRefused("the URL contains a space, a control character or a backslash; percent-encode it")
    try:
        parts = urlsplit(url)
    except ValueError as exc:
        raise UrlRefused(f"the URL is malformed: {exc}") from exc
    if parts.scheme not in policy.schemes:
        allowed = " or ".join(sorted(policy.schemes))
        raise UrlRefused(f"the URL's scheme is {parts.scheme!r}; only {allowed} is allowed here")
    host, address, port = _authority(parts.netloc, _DEFAULT_PORTS[parts.scheme])
    if not policy.permits_host(host):
        raise UrlRefused(f"host {host!r} is not among the hosts that this node may download from")
    if address is not None and (reason := refusal(address, policy)) is not None:
        raise UrlRefused(f"the URL's host is {host}, which is {reason}")
    query = f"?{parts.query}" if parts.query else ""
    return Target(parts.scheme, host, port, _ascii(f"{parts.path or '/'}{query}"), address)


def follow(target: Target, location: str, policy: FetchPolicy) -> Target:
    """The target that a `Location` header, as http.client decodes it, leads to. Raises UrlRefused."""
    # Servers send raw UTF-8 and spaces there; http.client hands the bytes over as Latin-1.
    written = quote_from_bytes(location.strip(" \t").encode("latin-1", "replace"), safe=_PRINTABLE)
    try:
        url = urljoin(target.url, written)
    except ValueError as exc:
        raise UrlRefused(f"{target.shown} redirects to a malformed URL: {exc}") from exc
    try:
        return parse_target(url, policy)
    except UrlRefused as exc:
        raise UrlRefused(f"{target.shown} redirects to a URL that is refused: {exc}") from exc


def _authority(netloc: str, default_port: int) -> tuple[str, IPAddress | None, int]:
    if "@" in netloc:
        raise UrlRefused("the URL contains a user name or password; use a signed URL instead")
    match = _AUTHORITY.fullmatch(netloc)
    if match is None:
        raise UrlRefused(f"the URL's host part is {netloc!r}; write it as host or host:port")
    port = int(match["port"]) if match["port"] else default_port
    if port in _BAD_PORTS or port > 65535:
        raise UrlRefused(f"the URL's port is {port}, which is not one for web servers")
    if match["v6"]:
        try:
            v6 = IPv6Address(match["v6"])
        except AddressValueError as exc:
            raise UrlRefused(f"the URL's host is not a valid IPv6 address: {exc}") from exc
        return str(v6), v6, port
    host = match["name"].lower().removesuffix(".")
    if not host.isascii():
        raise UrlRefused(f"the URL's host is {host!r}; write international names in their xn-- form")
    if not _NAME.fullmatch(host):
        raise UrlRefused(f"the URL's host is {host!r}, which is not a valid name")
    if not _NUMBER.fullmatch(host.rpartition(".")[2]):
        return host, None, port
    # Resolvers read 2130706433, 0177.0.0.1, 0x7f.1 and 127.1 as addresses; we accept one spelling only.
    try:
        v4 = IPv4Address(host)
    except AddressValueError as exc:
        raise UrlRefused(f"the URL's host is {host!r}; write an IPv4 address as four decimal numbers") from exc
    return str(v4), v4, port


def _ascii(text: str) -> str:
    try:
        return quote(text, safe=_PRINTABLE)
    except UnicodeEncodeError as exc:
        raise UrlRefused("the URL contains half of a surrogate pair; percent-encode its bytes") from exc
