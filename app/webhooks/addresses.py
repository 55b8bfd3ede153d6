"""Where a webhook may go: not into the network that Keepwarm itself is in. Pure.

Clients name the URL, and the request comes from a machine of ours (server-side request forgery). So only addresses of
the public Internet are allowed, and what an operator lists. A name says nothing about its addresses: those are looked
at when a webhook is sent, and the connection is made to the very address that was looked at (`sending.py`).
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import httpx2

MAX_URL_CHARS = 2048
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052

# IANA's registries of special-purpose addresses, as of 2025. Written down here, because the tables behind
# `ipaddress.is_global` differ from one release of Python to the next. 192.88.99.0/24: relays of 6to4.
_NOT_PUBLIC_IPV4 = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("10.0.0.0/8"),
    IPv4Network("100.64.0.0/10"),
    IPv4Network("127.0.0.0/8"),
    IPv4Network("169.254.0.0/16"),
    IPv4Network("172.16.0.0/12"),
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.0.2.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv4Network("192.168.0.0/16"),
    IPv4Network("198.18.0.0/15"),
    IPv4Network("198.51.100.0/24"),
    IPv4Network("203.0.113.0/24"),
    IPv4Network("224.0.0.0/4"),
    IPv4Network("240.0.0.0/4"),
)
_UNICAST_IPV6 = IPv6Network("2000::/3")  # all that is assigned to the public Internet is in here, except:
_NOT_PUBLIC_IPV6 = tuple(map(IPv6Network, ["2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"]))
_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")

Address = IPv4Address | IPv6Address


@dataclass(frozen=True, slots=True)
class Reach:
    """What an operator allows besides the public Internet."""

    names: frozenset[str] = frozenset()  # hosts, whatever their addresses
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, items: Iterable[str]) -> Reach:
        """Of names, addresses and CIDR blocks. Raises ValueError."""
        names: set[str] = set()
        networks: list[IPv4Network | IPv6Network] = []
        for item in items:
            try:
                networks.append(ipaddress.ip_network(item.strip("[]")))
            except ValueError:
                if not _NAME.fullmatch(item.lower()) or "/" in item:
                    raise ValueError(f"{item!r} is no host name, address or CIDR block like 10.1.0.0/16") from None
                names.add(item.lower().rstrip("."))
        return cls(frozenset(names), tuple(networks))

    def names_host(self, host: str) -> bool:
        return host.rstrip(".") in self.names

    def allows(self, address: Address) -> bool:
        plain = embedded_ipv4(address) or address
        return is_public(address) or any(
            candidate.version == network.version and candidate in network
            for candidate in {address, plain}
            for network in self.networks
        )


def embedded_ipv4(address: Address) -> IPv4Address | None:
    """The IPv4 address that packets to this IPv6 address end at: mapped, or translated by a NAT64 gateway."""
    if isinstance(address, IPv4Address):
        return None
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped


def is_public(address: Address) -> bool:
    """Whether it is of the public Internet: not private, loopback, link-local, shared, multicast or reserved."""
    if (inner := embedded_ipv4(address)) is not None:
        return is_public(inner)
    if isinstance(address, IPv4Address):
        return not any(address in block for block in _NOT_PUBLIC_IPV4)
    return address in _UNICAST_IPV6 and not any(address in block for block in _NOT_PUBLIC_IPV6)


def parse_target(text: str) -> httpx2.URL:
    """An absolute http or https URL without credentials. Raises ValueError that says what is wrong with it."""
    if len(text) > MAX_URL_CHARS:
        raise ValueError(f"longer than {MAX_URL_CHARS} characters")
    try:
        url = httpx2.URL(text)
        port = url.port
    except (httpx2.InvalidURL, ValueError):
        raise ValueError("not a valid URL") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("must be an absolute URL with http or https")
    if url.userinfo:
        raise ValueError("must not hold a user name or password; receivers check the signature")
    if port is not None and not 0 < port < 65536:
        raise ValueError("not a valid URL")
    return url


def objection(url: httpx2.URL, reach: Reach) -> str | None:
    """What is wrong with the host as far as its spelling says; nothing is looked up."""
    host = ascii_host(url)
    if reach.names_host(host):
        return None
    address = literal_address(host)
    if address is not None:
        return None if reach.allows(address) else _NOT_PUBLIC.format(host=host)
    if host.rstrip(".").rpartition(".")[2] == "localhost":
        return _NOT_PUBLIC.format(host=host)
    return None if _NAME.fullmatch(host) else "not a valid host name"


def literal_address(host: str) -> Address | None:
    """The address if the host is one, also in the old forms of IPv4 that resolvers take: 127.1, 0x7f000001."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))
    except (OSError, ValueError):
        return None


def ascii_host(url: httpx2.URL) -> str:
    """In lower case, international names in Punycode, IPv6 without brackets."""
    return url.raw_host.decode("ascii").lower().strip("[]")


_NOT_PUBLIC = (
    "{host} is not on the public Internet. Keepwarm sends nothing into its own network unless KEEPWARM_WEBHOOK_ALLOW "
    "lists the host or its address."
)
