"""Address, credentials and channel options of a server, shared by the synchronous and the asynchronous client."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

import grpc

from finetuneflow.credentials import Credentials, read_credentials
from finetuneflow.errors import InvalidArgument, Violation

DEFAULT_ADDRESS = "127.0.0.1:7460"

# Chunks have at most 1 MiB and pages of events stay well below it; a larger message is a mistake on either side.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024

_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # A gateway that vanishes or is stopped sends neither FIN nor RST. Pings detect it within 20 s; the gateway allows
    # one every 5 s. By default they stop after two without data from this side, and a watch sends none.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Otherwise gRPC waits a minute for the answer to a ping, whatever the keepalive says (measured with grpcio 1.85).
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Reconnects to a restarted gateway immediately rather than after gRPC's 20 s and more.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Despite its name, the maximum duration of one attempt to connect.
    ("grpc.min_reconnect_backoff_ms", 5_000),
]


@dataclass(frozen=True)
class Connection:
    """Settings of the connections to one system."""

    address: str = DEFAULT_ADDRESS
    """host:port of a gateway, or several separated by commas."""
    token: str = ""
    """Bearer token sent with every call. Empty for none."""
    ca: str = ""
    """PEM file with the certificate authority of the gateways, its text, or `system` for the machine's own ones. Empty
    for an unencrypted connection."""

    @classmethod
    def resolve(cls, address: str | None, token: str | None, ca: str | None) -> Connection:
        """Takes each setting from its argument, otherwise from FTF_ADDRESS, FTF_TOKEN or FTF_CA, otherwise from what is
        stored for the first address that has anything."""
        found = cls(address or os.environ.get("FTF_ADDRESS") or DEFAULT_ADDRESS)
        token = (os.environ.get("FTF_TOKEN") or None) if token is None else token
        ca = (os.environ.get("FTF_CA") or None) if ca is None else ca
        stored = Credentials()
        if token is None or ca is None:
            stored = next(filter(None, map(read_credentials, found.addresses)), stored)
        return cls(
            address=found.address,
            token=stored.token if token is None else token,
            ca=stored.ca if ca is None else ca,
        )

    def __post_init__(self) -> None:
        for address in self.addresses or (self.address,):
            host, colon, port = address.rpartition(":")
            if "://" in address or not (colon and host and port.isdigit()):
                raise InvalidArgument(
                    f"{address!r} is not a valid address.",
                    reason="INVALID_ADDRESS",
                    violations=[
                        Violation(
                            "address", f"must be host:port, such as {DEFAULT_ADDRESS}; separate several by commas"
                        )
                    ],
                )
            if self.token and not self.ca and not is_loopback(address):
                raise InvalidArgument(
                    f"The token would be sent unencrypted to {address}.",
                    reason="TOKEN_WITHOUT_TLS",
                    violations=[Violation("ca", "set FTF_CA to the server's CA file, or to `system`")],
                )

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses in the order in which they are tried."""
        return tuple(dict.fromkeys(filter(None, map(str.strip, self.address.split(",")))))

    def options(self, address: str) -> list[tuple[str, int | str]]:
        """Returns the options of the channel to one of the addresses."""
        # A proxy from the environment cannot reach this machine's loopback interface.
        return [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0 if is_loopback(address) else 1)]

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """The credentials of the channels; None for an unencrypted connection. Raises InvalidArgument if the CA file
        cannot be read."""
        if not self.ca:
            return None
        if self.ca == "system":
            return grpc.ssl_channel_credentials()
        if self.ca.startswith("-----BEGIN"):
            return grpc.ssl_channel_credentials(root_certificates=self.ca.encode())
        try:
            return grpc.ssl_channel_credentials(root_certificates=Path(self.ca).expanduser().read_bytes())
        except OSError as error:
            raise InvalidArgument(
                f"The CA file cannot be read: {error}", reason="INVALID_CA", violations=[Violation("ca", str(error))]
            ) from error

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


def is_loopback(address: str) -> bool:
    """Returns True if only this machine reaches `address`, a host:port."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
