"""Addresses that callers choose and this system connects to: public ones, and those that the operator allows."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import urlsplit

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_ENTRY: Final = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<host>[^:\[\]]+))(?::(?P<port>[0-9]{1,5}))?")
_TRANSLATED: Final = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that a gateway of the network translates to IPv4 (NAT64)."""
_LOCAL: Final = re.compile(r"(.*\.)?localhost\.?")
_NUMBERS: Final = re.compile(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+))*\.?")
"""Forms of an IPv4 address that some libraries understand."""
_PORTS: Final = {"http": 80, "https": 443}


class AddressRefused(Exception):
    """The operator does not allow a connection to that address; the message has the reason."""


@dataclass(frozen=True)
class _Entry:
    host: str
    """In lower case; empty for a network."""
    network: _Network | None
    port: int | None
    """None: all ports."""


class AddressPolicy:
    """Allows https to public addresses and, whatever the scheme, what the operator lists.

    An entry is a host name, an address or a network, each with `:port` or without; IPv6 in brackets. Raises ValueError
    for one that is none of these.
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        self._allowed = [_entry(text) for text in allowed]

    def check_url(self, url: str) -> None:
        """Raises AddressRefused for a URL that is refused whatever its host name resolves to."""
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        port = parts.port or _PORTS.get(parts.scheme, 0)
        address = _literal(host)
        if self._lists(host, port, address):
            return
        if parts.scheme != "https":
            raise AddressRefused(f"{parts.scheme}://{parts.netloc} is not https")
        if (address is not None and not _is_public(address)) or _LOCAL.fullmatch(host):
            raise AddressRefused(f"{host} is no public address")
        if address is None and _NUMBERS.fullmatch(host):
            raise AddressRefused(f"{host} is neither a host name nor an address of four numbers")

    def check_resolved(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """Raises AddressRefused unless every address that a host name resolved to is allowed."""
        for text in addresses:
            address = _literal(text)
            if address is None or not (_is_public(address) or self._lists(host.lower(), port, address)):
                # Without the address: names of the operator's network are not the caller's business.
                raise AddressRefused(f"{host} resolves to an address that is not public")

    def _lists(self, host: str, port: int, address: _Address | None) -> bool:
        return any(
            entry.port in (None, port)
            and (entry.host == host if entry.network is None else address is not None and address in entry.network)
            for entry in self._allowed
        )


NO_PRIVATE_ADDRESSES: Final = AddressPolicy()


def _entry(text: str) -> _Entry:
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        raise ValueError(
            f"{text!r} is no host, address or network, such as hooks.local:8443, 10.1.0.0/16 or [fd00::/8]"
        )
    name = match["v6"] or match["host"]
    port = int(match["port"]) if match["port"] else None
    try:
        return _Entry("", ipaddress.ip_network(name, strict=False), port)
    except ValueError:
        if match["v6"] or "/" in name:
            raise ValueError(f"{text!r} is no network") from None
        return _Entry(name.lower(), None, port)


def _literal(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None


def _is_public(address: _Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        # A packet to such an address may end at the IPv4 address in it.
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(inner)
    return address.is_global and not address.is_multicast
