"""Where the server is and how to talk to it: everything about a channel that is the same for sync and async."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from finetuneflow.errors import InvalidArgument, Violation

DEFAULT_ADDRESS = "127.0.0.1:7460"

# Chunks are half a MiB and a page of events is well below it; a larger message is a mistake on either side.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Longer than the 15 s after which a quiet watch sends something, so a server with default settings doesn't take
    # the pings for abuse; short enough to notice a vanished server within 40 s.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # A restarted gateway is found again at once rather than after gRPC's 20 s and more.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name the time one attempt to connect may take.
    ("grpc.min_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True)
class Connection:
    """Settings of one connection.

    `ca` is a PEM file with the certificate authority of the server, or `system` for the machine's own ones; without
    it the connection is not encrypted. `token` is sent as a bearer token with every call.
    """

    address: str = DEFAULT_ADDRESS
    token: str = ""
    ca: str = ""

    @classmethod
    def resolve(cls, address: str | None, token: str | None, ca: str | None) -> Connection:
        """Arguments first, then FTF_ADDRESS, FTF_TOKEN and FTF_CA, then the default address."""
        return cls(
            address=address or os.environ.get("FTF_ADDRESS") or DEFAULT_ADDRESS,
            token=token if token is not None else os.environ.get("FTF_TOKEN", ""),
            ca=ca if ca is not None else os.environ.get("FTF_CA", ""),
        )

    def __post_init__(self) -> None:
        host, colon, port = self.address.rpartition(":")
        if "://" in self.address or not (colon and host and port.isdigit()):
            raise InvalidArgument(
                f"{self.address!r} is not an address.",
                reason="INVALID_ADDRESS",
                violations=[Violation("address", f"write host:port, such as {DEFAULT_ADDRESS}")],
            )
        if self.token and not self.ca and not self.is_loopback:
            raise InvalidArgument(
                f"A token would travel unencrypted to {self.address}.",
                reason="TOKEN_WITHOUT_TLS",
                violations=[Violation("ca", "set FTF_CA to the server's CA file, or to `system`")],
            )

    @property
    def is_loopback(self) -> bool:
        host = self.address.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False

    @property
    def options(self) -> list[tuple[str, int | str]]:
        # A proxy from the environment can't reach this machine's own loopback.
        return [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0 if self.is_loopback else 1)]

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """None for an unencrypted connection. Raises InvalidArgument when the CA file can't be read."""
        if not self.ca:
            return None
        if self.ca == "system":
            return grpc.ssl_channel_credentials()
        try:
            return grpc.ssl_channel_credentials(root_certificates=Path(self.ca).expanduser().read_bytes())
        except OSError as error:
            raise InvalidArgument(
                f"The CA file can't be read: {error}", reason="INVALID_CA", violations=[Violation("ca", str(error))]
            ) from error

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()
