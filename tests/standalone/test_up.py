"""`ftf up`, as a user starts it: the real processes on a home of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetuneflow import Client
from standalone.ports import free_port
from tests.odd_names import ODD

PROCESSES = {"nats-server", "gateway", "probe", "trainer", "evaluator", "exporter"}


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


def test_up_listens_on_loopback_only(tmp_path: Path) -> None:
    """There is no authentication yet: a gateway on a public address would train for anybody."""
    refused = subprocess.run(
        command(tmp_path, free_port()),
        env=os.environ | {"FTF_GATEWAY_LISTEN": "0.0.0.0:7460"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 2
    assert "no authentication" in refused.stderr
    assert not [*tmp_path.iterdir()]


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
