"""Where callers reach the gateway of `ftf up`."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from standalone.ports import LOOPBACK

_ALL: Final = ("0.0.0.0", "::")  # noqa: S104 - compared only
_LOCAL: Final = ("localhost", LOOPBACK, "::1")


class InvalidHost(Exception):
    """The host is no address of this machine."""


@dataclass(frozen=True)
class Listener:
    """Where callers reach the gateway."""

    host: str
    """Host name or address to listen on; 0.0.0.0 for all addresses of the machine."""
    port: int
    names: tuple[str, ...]
    """Names and addresses of the certificate that is made for it."""
    certificate: Path | None = None
    """PEM file with the caller's own certificate in its place; with `key`."""
    key: Path | None = None

    @property
    def listen(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def local_address(self) -> str:
        """Its address for clients on this machine."""
        return f"{LOOPBACK}:{self.port}" if self.host in _ALL else self.listen


def listener_on(host: str, port: int, certificate: Path | None = None, key: Path | None = None) -> Listener:
    """Returns the listener on `host`, with all names under which it can be reached. Raises InvalidHost."""
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        raise InvalidHost(f"{host!r} is no address of this machine: {error.strerror or error}") from error
    names = list(_LOCAL)
    if host in _ALL:
        names += [*_addresses(), socket.gethostname()]
    elif host not in names:
        names.append(host)
    return Listener(host, port, tuple(dict.fromkeys(names)), certificate, key)


def _addresses() -> list[str]:
    """Returns the addresses of this machine that others may reach."""
    found = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries if _is_ip(entry.family)]
    given = [ipaddress.ip_address(address.partition("%")[0]) for address in found]
    return sorted(str(address) for address in given if not (address.is_loopback or address.is_link_local))


def _is_ip(family: int) -> bool:
    return family in (socket.AF_INET, socket.AF_INET6)
