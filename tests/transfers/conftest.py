"""Two real gateway processes on one home, which a test may kill at any moment."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from chassis.store.artifact_store import ArtifactStore
from standalone.ports import is_free
from tests.servers.nats import NatsServer


class Gateway:
    """One process, always on the same port."""

    def __init__(self, home: Path, nats: NatsServer) -> None:
        self.home = home
        self.address = f"127.0.0.1:{_lasting_port()}"
        self.armed = home / "failpoints"
        self.armed.mkdir(parents=True, exist_ok=True)
        self._environment = {
            **os.environ,
            "FTF_HOME": str(home),
            **nats.environment("gateway"),
            "FTF_GATEWAY_INSECURE": "true",
            "FTF_GATEWAY_LISTEN": self.address,
            "FTF_FAILPOINTS": str(self.armed),
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.home / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway"], env=self._environment, stdout=log, stderr=log
            )
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(60)

    def kill(self) -> None:
        """Kills the processes as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @contextlib.contextmanager
    def disk_limited_to(self, left: int) -> Iterator[None]:
        """Runs with a file size limit: a process observes a full disk in the same way."""
        assert self._process is not None
        process = psutil.Process(self._process.pid)
        limits = process.rlimit(psutil.RLIMIT_FSIZE)
        process.rlimit(psutil.RLIMIT_FSIZE, (left, limits[1]))
        try:
            yield
        finally:
            process.rlimit(psutil.RLIMIT_FSIZE, limits)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)

    def restart_when_killed(self) -> threading.Thread:
        """Starts the gateway again, from a thread, once it was killed."""

        def revive() -> None:
            assert self._process is not None
            self._process.wait(60)
            self.start()

        thread = threading.Thread(target=revive)
        thread.start()
        return thread


def _lasting_port() -> int:
    """Returns a port outside the ephemeral range: a client that keeps connecting to a dead gateway could otherwise be
    assigned that very port and connect to itself."""
    return next(port for port in iter(lambda: random.randint(20_000, 32_000), 0) if is_free(port))  # noqa: S311


class Gateways:
    """Two gateways, `first` and `second`, with their shared database and store."""

    def __init__(self, home: Path, nats: NatsServer) -> None:
        self.home = home
        self.first = Gateway(home, nats)
        self.second = Gateway(home, nats)
        self.store = ArtifactStore((home / "artifacts").as_uri())
        self.database_url = f"sqlite:///{home / 'gateway.sqlite'}"

    def partial(self) -> list[Path]:
        """Returns the incomplete files in the store."""
        folder = self.home / "artifacts" / ".partial"
        return list(folder.iterdir()) if folder.is_dir() else []

    def datasets(self) -> list[Path]:
        """The files of datasets in the store."""
        return [path for path in (self.home / "artifacts").glob("*/datasets/*/*") if path.is_file()]


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("nats")
    nats = NatsServer(folder)
    nats.start()
    gateways = Gateways(tmp_path_factory.mktemp("home"), nats)
    both = (gateways.first, gateways.second)
    for gateway in both:
        gateway.start()
    yield gateways
    for gateway in both:
        gateway.stop()
    nats.stop()
