"""A real, authenticated nats-server for one test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from chassis.bus.permissions import GATEWAY, accounts, worker_user

CONFIG = """
listen: 127.0.0.1:{port}
max_payload: 8MB
server_name: test
jetstream {{ store_dir: "{store}", max_memory_store: 64MB, max_file_store: 4GB }}
accounts {{
{accounts}
}}
"""

WORKERS = [
    *map(worker_user, ("probe", "trainer", "evaluator", "exporter")),
    worker_user("trainer", "gpu"),
]

# In the new process, not between fork and exec: a process that has used gRPC crashes there now and then.
DIE_WITH_PARENT = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


class NatsServer:
    """A nats-server on one port for its whole life, so that clients reconnect after a restart.

    It has the accounts of a real system, and `user`, which may do everything in that of the gateways.
    """

    user = "ftf"
    password = "test-password"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = folder / "jetstream"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"nats://127.0.0.1:{self.port}"
        self._config = folder / "nats.conf"
        password = f'"{self.password}"'
        all_accounts = accounts(
            WORKERS,
            dict.fromkeys([GATEWAY, *(user.name for user in WORKERS)], password),
            others=f'{{ user: "{self.user}", password: {password} }}\n',
        )
        self._config.write_text(CONFIG.format(port=self.port, store=self._store, accounts=all_accounts))
        self._process: subprocess.Popen[bytes] | None = None

    def environment(self, service: str) -> dict[str, str]:
        """Returns the settings with which a process of the gateway or of a service connects, as its own user."""
        return {"FTF_NATS_URL": self.url, "FTF_NATS_USER": service, "FTF_NATS_PASSWORD": self.password}

    def start(self) -> None:
        binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        assert binary
        with (self._folder / "nats.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-SEc", DIE_WITH_PARENT, binary, "-c", str(self._config)],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as probe:
                    if probe.recv(4) == b"INFO":
                        return
            except OSError:
                pass
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError((self._folder / "nats.log").read_text())
            time.sleep(0.01)

    def stop(self) -> None:
        """Kills the server, as a power cut would."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def wipe(self) -> None:
        """Restarts the server without its stored data."""
        self.stop()
        shutil.rmtree(self._store, ignore_errors=True)
        self.start()

    def back_up(self, folder: Path) -> None:
        """Copies the stored data; the server is stopped meanwhile, so that the copy is consistent."""
        self.stop()
        shutil.copytree(self._store, folder)
        self.start()

    def roll_back(self, folder: Path) -> None:
        """Restarts the server with the data that back_up() copied to `folder`, without later changes."""
        self.stop()
        shutil.rmtree(self._store)
        shutil.copytree(folder, self._store)
        self.start()
