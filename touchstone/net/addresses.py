"""Addresses that outbound requests may reach: none of this machine, private networks or cloud metadata
services.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_CLIENT_PREFIX = 64
"""A client with one IPv6 address usually has all of its prefix."""

_HOST_AND_PORT = re.compile(r"\[?([^\[\]]+?)\]?:([0-9]{1,5})")
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]{0,251}[a-z0-9_])?")

# The library's `is_global` lets some of these pass, and changes from version to version.
CLOSED: tuple[Network, ...] = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",  # this network; many systems treat it as loopback
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers; metadata of some clouds
            "127.0.0.0/8",  # this machine
            "168.63.129.16/32",  # a cloud's host agent, at a public address
            "169.254.0.0/16",  # link-local: metadata of most clouds
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # multicast tunnels
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            # Of IPv6 only 2000::/3 is allocated. Below it are loopback (::1), embedded IPv4 (::/96,
            # ::ffff:0:0/96) and NAT64 (64:ff9b::/96, 64:ff9b:1::/48); above it private networks (fc00::/7),
            # link-local (fe80::/10), site-local (fec0::/10) and multicast (ff00::/8).
            "::/3",
            "4000::/2",
            "8000::/1",
            "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4: embedded IPv4
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
        ),
    )
)


def is_closed(address: Address) -> bool:
    """Whether requests to the address are refused unless the operator allows it."""
    return any(address in network for network in CLOSED)


@dataclass(frozen=True)
class Permit:
    """An exception by the operator: a host by name, or a network; one port, or any."""

    host: str | None
    network: Network | None
    port: int | None = None

    def covers(self, host: str, port: int, address: Address) -> bool:
        """Whether it allows a request to this host at this address."""
        if self.port not in (None, port):
            return False
        return host == self.host if self.network is None else address in self.network


@dataclass(frozen=True)
class Permits:
    """The operator's exceptions, as `TOUCHSTONE_OUTGOING_ALLOW` writes them."""

    entries: tuple[Permit, ...] = ()

    @classmethod
    def parse(cls, text: str | None) -> Permits:
        """Hosts, host:port and networks, separated by commas. Raises ValueError for anything else."""
        entries = [entry.strip().lower() for entry in (text or "").split(",")]
        return cls(tuple(_parse_permit(entry) for entry in entries if entry))

    def cover(self, host: str, port: int, address: Address) -> bool:
        """Whether any entry allows a request to this host at this address."""
        return any(permit.covers(host, port, address) for permit in self.entries)


def _parse_permit(entry: str) -> Permit:
    if (network := _parse_network(entry)) is not None:
        return Permit(None, network)
    split = _HOST_AND_PORT.fullmatch(entry)
    host, port = (split[1], int(split[2])) if split else (entry, None)
    if (network := _parse_network(host)) is not None:
        return Permit(None, network, port)
    if not _NAME.fullmatch(host) or port == 0 or (port or 0) > 65535:
        raise ValueError(f"{entry!r} is no host, host:port or network such as 10.0.0.0/8")
    return Permit(host, None, port)


def _parse_network(text: str) -> Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None


def parse_address(host: str) -> Address | None:
    """The address that a host literal stands for; None for a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


def find_client_network(address: str) -> str:
    """Whom to count a client's address as: an IPv4 address, an IPv6 /64; anything else as it is."""
    known = parse_address(address.partition("%")[0])
    if isinstance(known, IPv6Address):
        return str(known.ipv4_mapped or ip_network((int(known), _CLIENT_PREFIX), strict=False))
    return address
