"""The bundled broker: its password, its streams and its data folder."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import pytest
from nats.errors import Error as NatsError

from chassis.bus.permissions import worker_user
from chassis.security.certificates import CertificateAuthority, CertificateFiles
from standalone.nats import NatsServer, configure
from standalone.ports import free_port
from standalone.processes import Program, SupervisedProcess
from tests.odd_names import ODD


def certificate(folder: Path) -> CertificateFiles:
    return CertificateAuthority.open(folder / "logs" / "ca").issue(folder / "logs" / "nats", "nats", ["127.0.0.1"])


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[NatsServer]:
    server = configure(tmp_path / ODD, free_port(), [], certificate(tmp_path))
    kept = SupervisedProcess(Program("nats-server", server.argv, server.ready), tmp_path, tmp_path / "logs", print)
    await kept.start()
    yield server
    await kept.stop()


async def test_connection_requires_password(broker: NatsServer) -> None:
    """Every user of a shared machine can connect to its loopback ports."""
    for password in ("", "wrong"):
        with pytest.raises(NatsError):
            await nats.connect(
                broker.url,
                tls=broker.tls,
                tls_handshake_first=True,
                user="gateway",
                password=password,
                allow_reconnect=False,
                max_reconnect_attempts=0,
                error_cb=_ignore_error,
            )


async def test_jetstream_and_large_messages_are_enabled(broker: NatsServer) -> None:
    """Work items are in a stream; without it no job starts."""
    client = await nats.connect(
        broker.url,
        tls=broker.tls,
        tls_handshake_first=True,
        user="gateway",
        password=broker.passwords["gateway"],
        inbox_prefix="_INBOX.gateway",
    )
    jetstream = client.jetstream()
    await jetstream.add_stream(name="FTF_WORK", subjects=["ftf.v1.work.>"])
    acknowledged = await asyncio.wait_for(jetstream.publish("ftf.v1.work.try", b"x" * (4 << 20)), 30)
    assert acknowledged.seq == 1
    await client.close()


def test_data_folder_may_have_any_name(broker: NatsServer, tmp_path: Path) -> None:
    """One umlaut in the path prevented the start."""
    assert (tmp_path / ODD / "store" / "jetstream").is_dir()
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "logs"] == [ODD]


def test_folder_name_with_invalid_utf8_is_escaped(tmp_path: Path) -> None:
    configure(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), 4222, [], certificate(tmp_path))
    assert b"caf\\xe9/store" in Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9/nats.conf")).read_bytes()


def test_configuration_file_is_readable_by_owner_only(tmp_path: Path) -> None:
    """It contains the passwords."""
    configure(tmp_path, 4222, [], certificate(tmp_path))
    assert (tmp_path / "nats.conf").stat().st_mode & 0o077 == 0
    users = [worker_user("probe")]
    passwords = [*configure(tmp_path, 4222, users, certificate(tmp_path)).passwords.values()]
    passwords += configure(tmp_path, 4222, users, certificate(tmp_path)).passwords.values()
    assert len(set(passwords)) == 4
    assert all(passwords)


async def _ignore_error(_: Exception) -> None:
    pass
