"""Which network addresses may be asked on behalf of a user. Pure: it looks nothing up and opens nothing.

`ipaddress.is_global` alone is not enough: it calls NAT64, 6to4, multicast and several metadata services global.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

IPAddress = IPv4Address | IPv6Address
_Network = IPv4Network | IPv6Network

_METADATA: tuple[_Network, ...] = tuple(
    ip_network(text)
    for text in (
        "169.254.0.0/16",  # AWS, Azure, Google, and every other link-local service
        "168.63.129.16/32",  # Azure's host agent, a public address that only exists inside Azure
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "fe80::/10",
    )
)
_PRIVATE: tuple[_Network, ...] = tuple(
    ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
_NEVER: tuple[_Network, ...] = tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
        "64:ff9b::/96",  # These carry an IPv4 address inside, which a gateway would reach for us.
        "64:ff9b:1::/48",
        "2001::/32",
        "2002::/16",
        "2001:20::/28",
        "2001:db8::/32",
        "3fff::/20",
    )
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")


def refusal(address: IPAddress, allow_loopback: bool, allow_private: bool) -> str | None:
    """Why `address` is forbidden, in words that follow "which is"; None if it is allowed.

    Metadata services stay forbidden whatever is allowed.
    """
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if _within(address, _METADATA):
        return "link-local or a cloud's metadata service"
    if address.is_loopback:
        return None if allow_loopback else "a loopback address"
    if _within(address, _PRIVATE):
        return None if allow_private else "a private address"
    if _within(address, _NEVER) or not address.is_global or address.is_multicast:
        return "not a public address"
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "not a public address"
    return None


def _within(address: IPAddress, networks: tuple[_Network, ...]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
