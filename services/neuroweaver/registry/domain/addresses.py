"""Which addresses of the network are everybody's, and which belong to this machine or to its surroundings."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

# https://www.iana.org/assignments/iana-ipv4-special-registry, multicast and the reserved class E. Written
# out, since what the standard library's `is_global` says differs between its versions.
_SPECIAL_V4: Final = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        # The metadata service of Azure, in the midst of public addresses:
        # https://learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
        "168.63.129.16/32",
    )
)

# https://www.iana.org/assignments/ipv6-address-space: all else is local, reserved, or wraps another address.
_GLOBAL_V6: Final = ip_network("2000::/3")
# https://www.iana.org/assignments/iana-ipv6-special-registry; 2002::/16 and 2001::/32 wrap IPv4 addresses.
_SPECIAL_V6: Final = tuple(
    ip_network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
)
# IPv4 behind a translator, RFC 6052: what machines without IPv4 reach the rest of the world by.
_TRANSLATED: Final = ip_network("64:ff9b::/96")


def is_address(host: str) -> bool:
    """Whether it is a literal, and no name."""
    return _parsed(host) is not None


def is_loopback(address: str) -> bool:
    """Whether it is this machine. address: a literal; anything else is not."""
    parsed = _parsed(address)
    return parsed is not None and parsed.is_loopback


def is_public(address: str) -> bool:
    """Whether it is one of the whole Internet's, and not of this machine, its network or its cloud."""
    parsed = _parsed(address)
    if isinstance(parsed, IPv4Address):
        return not any(parsed in network for network in _SPECIAL_V4)
    return (
        parsed is not None and parsed in _GLOBAL_V6 and not any(parsed in network for network in _SPECIAL_V6)
    )


def _parsed(address: str) -> IPv4Address | IPv6Address | None:
    """The address that a packet would reach in the end."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return None
    if not isinstance(parsed, IPv6Address):
        return parsed
    if parsed in _TRANSLATED:
        return IPv4Address(int(parsed) & 0xFFFF_FFFF)
    return parsed.ipv4_mapped or parsed
