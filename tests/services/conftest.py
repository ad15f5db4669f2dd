"""The four services as processes, beside a real broker."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from standalone.guard import guarded
from tests.servers.nats import NatsServer

SERVICES = ("probe", "trainer", "evaluator", "exporter")


class Process:
    """`python -m services.<name>`, listening on a free port."""

    def __init__(self, name: str, home: Path, nats: NatsServer) -> None:
        self.name = name
        self.home = home
        self.node_id = f"{name}-under-test"
        environment = {
            "FTF_HOME": str(home),
            **nats.environment(name),
            "FTF_INSECURE": "true",
            f"FTF_{name.upper()}_LISTEN": "127.0.0.1:0",
            f"FTF_{name.upper()}_NODE_ID": self.node_id,
            # It names each import in `lines`.
            "PYTHONPROFILEIMPORTTIME": "1",
        }
        # The signal at the parent's death is set in the new process: between fork and exec, a process that has used
        # gRPC crashes now and then.
        self.popen = subprocess.Popen(
            guarded([sys.executable, "-m", f"services.{name}"]),
            env={**os.environ, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._listens = threading.Event()
        self.address = ""
        threading.Thread(target=self._read, daemon=True).start()

    def wait_until_it_listens(self) -> str:
        assert self._listens.wait(30), "".join(self.lines)
        assert self.address, "".join(self.lines)
        return self.address

    def stop(self) -> int:
        self.popen.send_signal(signal.SIGTERM)
        try:
            return self.popen.wait(20)
        finally:
            self.popen.kill()

    def _read(self) -> None:
        assert self.popen.stderr
        for line in self.popen.stderr:
            self.lines.append(line)
            if found := re.search(r"listens on (\S+)", line):
                self.address = found[1]
                self._listens.set()
        self._listens.set()


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    server = NatsServer(tmp_path_factory.mktemp("nats"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory, nats: NatsServer) -> Iterator[dict[str, Process]]:
    folder = tmp_path_factory.mktemp("services")
    running = {name: Process(name, folder / name, nats) for name in SERVICES}
    for process in running.values():
        process.wait_until_it_listens()
    yield running
    for process in running.values():
        process.stop()
