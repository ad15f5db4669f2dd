"""A PostgreSQL server for one test, from the installed binaries."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

_RUN_AS = "postgres"  # the server refuses to run as root
_BECOME = """
import os, pwd, sys
user = pwd.getpwnam(sys.argv[1])
os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
os.execv(sys.argv[2], sys.argv[2:])
"""


def binaries() -> Path | None:
    """Returns the folder with initdb and postgres of the newest version; None if PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    on_path = shutil.which("initdb")
    return found[0].parent if found else Path(on_path).parent if on_path else None


class PostgresServer:
    """A server on a free port of 127.0.0.1 in a temporary folder of its own; `url` is for gateway.sql.database.

    Use it as a context manager, which stops it and deletes the folder. Unless `durable`, fsync is off.
    """

    def __init__(self, *, durable: bool = False) -> None:
        bin_folder = binaries()
        assert bin_folder is not None
        self._bin = bin_folder
        self._fsync = "on" if durable else "off"
        self._user = _RUN_AS if os.geteuid() == 0 else None
        # Another user may have no way into root's TMPDIR: `mktemp -d` makes folders that only their owner may enter.
        self._temporary = tempfile.TemporaryDirectory(prefix="ftf-postgres-", dir="/tmp" if self._user else None)
        self._folder = Path(self._temporary.name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"postgresql://ftf@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the server if it runs, and deletes its data."""
        if self.running:
            self.stop()
        self._temporary.cleanup()

    def start(self) -> None:
        if self._user:
            shutil.chown(self._folder, self._user, self._user)
        data = self._folder / "data"
        self._run(self._bin / "initdb", "-D", data, "-U", "ftf", "--auth=trust", "--no-sync")
        self.start_again()

    def start_again(self) -> None:
        """Starts again after stop(), with the same data."""
        data = self._folder / "data"
        # No socket: a path of more than 107 bytes can't be one.
        options = f"-p {self.port} -h 127.0.0.1 -c unix_socket_directories= -c fsync={self._fsync}"
        self._run(self._bin / "pg_ctl", "-D", data, "-w", "-l", self._folder / "log", "-o", options, "start")

    def stop(self) -> None:
        self._run(self._bin / "pg_ctl", "-D", self._folder / "data", "-m", "immediate", "stop")

    @property
    def running(self) -> bool:
        return (self._folder / "data" / "postmaster.pid").exists()

    def _run(self, *command: str | Path) -> None:
        # Not by Popen's `user`, which makes it fork: the process of a test that uses gRPC does not survive that.
        become = [sys.executable, "-I", "-S", "-c", _BECOME, self._user] if self._user else []
        subprocess.run(
            [str(part) for part in (*become, *command)],
            check=True,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )
