"""`ftf up`, as a user starts it: the real processes on a home of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc import StatusCode

from chassis.security.certificates import CertificateAuthority, CertificateFiles
from chassis.security.identity import Identity
from finetuneflow import Client
from finetuneflow.credentials import read_credentials
from finetuneflow.errors import ServerUnreachable, Unauthenticated
from standalone.ports import free_port
from tests.odd_names import ODD

PROCESSES = {"nats-server", "gateway", "deliveries", "probe", "trainer", "evaluator", "exporter"}


class Up:
    """A running `ftf up --json`."""

    def __init__(self, home: Path, port: int) -> None:
        self.home = home
        self.process = subprocess.Popen(command(home, port), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.status = self.next("up")

    def next(self, *states: str, naming: str = "") -> dict[str, Any]:
        """The next line about one of `states`; the test's time-out ends a wait in vain."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            status: dict[str, Any] = json.loads(line)
            if status["state"] in states and naming in status.get("message", ""):
                return status
        self.process.wait()
        assert self.process.stderr is not None
        raise AssertionError(self.process.stderr.read())

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def command(home: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "finetuneflow.cli", "up", "--home", str(home), "--port", str(port), "--json"]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[], Up]]:
    started: list[Up] = []

    def start() -> Up:
        started.append(Up(tmp_path / ODD, free_port()))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.communicate()


def test_up_serves_restarts_dead_processes_and_stops_all(up: Callable[[], Up]) -> None:
    """The life of a server on one machine, in the order in which a user meets it."""
    running = up()
    assert set(running.status["processes"]) == PROCESSES
    with Client(running.status["address"]) as client:
        assert "smollm2-135m" in [model.id for model in client.models.list()]

        second = subprocess.run(command(running.home, free_port()), capture_output=True, text=True, check=False)
        assert second.returncode == 2
        assert f"process {running.process.pid}, on {running.status['address']} since" in second.stderr

        for name in ("gateway", "nats-server", "trainer"):
            os.kill(running.status["processes"][name], signal.SIGKILL)
            running.next("notice", naming=f"{name} was killed by SIGKILL")
            running.next("notice", naming=f"{name} is up again")
        assert "smollm2-135m" in [model.id for model in client.models.list()]

    assert {"gateway.sqlite", "nats", "logs"} <= {entry.name for entry in running.home.iterdir()}
    assert [entry.name for entry in running.home.parent.iterdir()] == [ODD], "files outside the home were written"
    for path in (running.home, *running.home.iterdir()):
        assert not path.stat().st_mode & 0o077, f"other users may read {path.name}"

    family = running.family()
    assert len(family) >= len(PROCESSES)
    running.process.send_signal(signal.SIGINT)
    running.next("stopped")
    assert running.process.wait(timeout=60) == 0
    assert not psutil.wait_procs(family, timeout=10)[1]


def test_no_orphan_survives_sigkill_and_next_up_starts(up: Callable[[], Up]) -> None:
    """After a crash the same command must work again, without manual cleanup."""
    running = up()
    family = running.family()
    running.process.kill()
    assert not psutil.wait_procs(family, timeout=10)[1]
    again = up()
    assert again.home == running.home
    again.process.send_signal(signal.SIGTERM)
    again.next("stopped")


def test_settings_that_would_open_another_port_are_refused(tmp_path: Path) -> None:
    """A gateway that listens elsewhere than `ftf up` says would be checked, and stored, under the wrong address."""
    refused = subprocess.run(
        command(tmp_path, free_port()),
        env=os.environ | {"FTF_GATEWAY_LISTEN": "0.0.0.0:7460"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "--host" in refused.stderr
    assert not [*tmp_path.iterdir()]


def test_other_users_and_plaintext_clients_are_refused(up: Callable[[], Up]) -> None:
    """Whoever reaches the port of a shared machine: without the key, without TLS, with another authority."""
    address = up().status["address"]
    stored = read_credentials(address)
    assert stored is not None
    with Client(address) as own:
        assert [*own.recipes.list()]
    with Client(address, token="") as other, pytest.raises(Unauthenticated, match="ftf login"):
        [*other.recipes.list()]
    wrong = CertificateAuthority.open(Path(tempfile.mkdtemp())).pem
    for ca in ("", wrong):
        with Client(address, token=stored.token, ca=ca) as other, pytest.raises(ServerUnreachable):
            [*other.recipes.list()]


def test_port_of_each_process_refuses_strangers(up: Callable[[], Up], tmp_path: Path) -> None:
    """Without a certificate, with one of another system, with a stolen trainer's: none drains or asks a service."""
    running = up()
    tls = running.home / "tls"
    methods = {
        "probe": "ProbeService/GetHardware",
        "trainer": "TrainerService/DrainTrainer",
        "evaluator": "EvaluatorService/Generate",
        "exporter": "ExporterService/GetExporter",
    }
    foreign = CertificateAuthority.open(tmp_path / "foreign" / "ca").issue(tmp_path / "foreign" / "gateway", "gateway")
    stolen = CertificateFiles.in_folder(tls / "trainer")
    gateway = CertificateFiles.in_folder(tls / "gateway")
    authority = gateway.authority.read_bytes()
    strangers = {
        "plaintext": None,
        "no certificate": grpc.ssl_channel_credentials(authority),
        "foreign": grpc.ssl_channel_credentials(authority, foreign.key.read_bytes(), foreign.certificate.read_bytes()),
        "stolen": Identity(stolen).channel_credentials(),
    }
    for name, method in methods.items():
        address = f"127.0.0.1:{listening_port(running, name)}"
        for stranger, credentials in strangers.items():
            code = call(address, credentials, name, method)
            expected = StatusCode.PERMISSION_DENIED if stranger == "stolen" else StatusCode.UNAVAILABLE
            assert code is expected, (name, stranger, code)
        own = Identity(gateway).channel_credentials()
        assert call(address, own, name, method) in (StatusCode.OK, StatusCode.INVALID_ARGUMENT), name
        assert call(address, own, "gateway", method) is StatusCode.UNAVAILABLE, "it shows another name than its own"
    with socket.create_connection(("127.0.0.1", listening_port(running, "nats-server"))) as plain:
        plain.sendall(b'CONNECT {"user":"gateway","pass":"x"}\r\nPING\r\n')
        plain.settimeout(30)
        assert b"PONG" not in plain.recv(4096)


def listening_port(running: Up, name: str) -> int:
    process = psutil.Process(running.status["processes"][name])
    [port] = [found.laddr.port for found in process.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    return int(port)


def call(address: str, credentials: grpc.ChannelCredentials | None, name: str, method: str) -> StatusCode:
    """Calls a method with an empty request and returns the status."""
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_http_proxy", 0)]
    channel = grpc.secure_channel(address, credentials, options) if credentials else grpc.insecure_channel(address)
    with channel:
        try:
            for _ in channel.unary_stream(f"/finetuneflow.v1.{method}")(b"", timeout=30):
                pass
        except grpc.RpcError as error:
            code: StatusCode = error.code()
            return code
    return StatusCode.OK


def test_up_on_all_addresses_serves_other_machines(tmp_path: Path) -> None:
    """The same command, with TLS and a key, serves the network; `ca` is what the other machine needs."""
    port = free_port()
    process = subprocess.Popen(
        [*command(tmp_path / "home", port), "--host", "0.0.0.0"],  # noqa: S104 - this is what is tried
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        status = next(line for line in map(json.loads, process.stdout) if line["state"] == "up")
        stored = read_credentials(status["address"])
        assert stored is not None
        name = f"{socket.gethostname()}:{port}"
        with Client(name, token=stored.token, ca=status["ca"]) as remote:
            assert [*remote.recipes.list()]
        with Client(name, token="", ca=status["ca"]) as stranger, pytest.raises(Unauthenticated):
            [*stranger.recipes.list()]
    finally:
        process.kill()
        process.communicate()


def test_error_names_the_port_in_use(tmp_path: Path) -> None:
    """Otherwise the user sees a gateway that restarts for ever."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        refused = subprocess.run(command(tmp_path, port), capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert f"Port {port} is in use" in json.loads(refused.stderr)["error"]["message"]
    assert not [*tmp_path.iterdir()], "a refused start left files or processes"


def test_second_ctrl_c_kills_draining_processes(up: Callable[[], Up]) -> None:
    """Otherwise a user who presses Ctrl-C twice would still wait for the prompt, or find processes left running."""
    running = up()
    family = running.family()
    gateway = psutil.Process(running.status["processes"]["gateway"])
    trainer = psutil.Process(running.status["processes"]["trainer"])
    trainer.suspend()
    running.process.send_signal(signal.SIGINT)
    running.next("stopping")
    assert gateway.is_running(), "the gateway must accept the last reports of draining workers"
    running.process.send_signal(signal.SIGINT)
    running.next("killing")
    running.next("stopped")
    assert not psutil.wait_procs(family, timeout=10)[1]
