"""Addresses that a server listens on."""

import ipaddress


def is_loopback(listen: str) -> bool:
    """Returns True if only this machine reaches `listen`, a host:port."""
    host = listen.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
