"""A real Ray cluster on this machine: two nodes, each with one CPU for work."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psutil

INSTALLED: Final = sorted((Path(__file__).parents[2] / ".tools").glob("ray-*/ray"))
"""`make test-long` installs it, apart from what we need ourselves."""


class RayNode:
    """A node of a cluster, in the foreground of a process of its own."""

    def __init__(self, name: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--num-gpus=0"),
                    *("--node-ip-address=127.0.0.1", "--object-store-memory=80000000", "--disable-usage-stats"),
                    *arguments,
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
            )
        assert self._process.stdout
        for line in self._process.stdout:
            if "--block" in line:
                return
        raise AssertionError(f"{name} did not start: {log.read_text()}")

    def processes(self) -> list[psutil.Process]:
        """Everything that the node has started."""
        return psutil.Process(self._process.pid).children(recursive=True)

    def kill(self) -> None:
        """Ends the node and all its processes at once, as a machine that loses its power."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(self._process.pid), *self.processes()]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        self._process.wait()


class RayCluster:
    """Two nodes. `address` is that of the head, on which drivers run."""

    def __init__(self, folder: Path) -> None:
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        self.client = {
            "PYTHONPATH": str(INSTALLED[-1].parent),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }
        """Environment of whoever uses the cluster."""
        self._folder = folder
        self._environment = {
            **os.environ,
            **self.client,
            # A lost node is noticed within seconds.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "3",
        }
        head = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={folder / 't'}"]
        self.head = RayNode("the head", head, self._environment, folder / "head.log")
        self.other = self.start_other()

    def start_other(self) -> RayNode:
        """Starts the second node."""
        arguments = [f"--address={self.address}"]
        return RayNode("the other node", arguments, self._environment, self._folder / "other.log")


@contextlib.contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    """Yields a cluster, which ends with the block."""
    # The paths of its sockets may not be long.
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))
    cluster = None
    try:
        cluster = RayCluster(folder)
        yield cluster
    finally:
        if cluster:
            cluster.other.kill()
            cluster.head.kill()
        shutil.rmtree(folder, ignore_errors=True)
