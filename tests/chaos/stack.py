"""The real stack as real processes, each of which can be killed, stopped and restarted on its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import psutil

from chassis.security.certificates import CertificateAuthority
from chassis.security.identity import Identity
from finetuneflow import Client
from finetuneflow.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from standalone import nats
from standalone.guard import guarded
from standalone.ports import free_port
from tests.servers.nats import WORKERS
from tests.servers.postgres import PostgresServer

SERVICES = ("probe", "trainer", "evaluator", "exporter")
LEASE_SECONDS = 3.0
_START_SECONDS = 60.0
_REVIVE_SECONDS = 0.3
_ROOT = Path(__file__).parents[2]
_INPUT = "input.json"
"""The last argument of every child."""


@dataclass
class Proc:
    """A process of the stack. It is killed when this process ends for any reason."""

    name: str
    argv: Sequence[str]
    environment: dict[str, str]
    log: Path
    wanted: bool = True
    """False while a fault keeps it down."""
    starts: int = 0
    popen: subprocess.Popen[bytes] | None = None
    exits: list[int] = field(default_factory=list)

    def start(self) -> None:
        """Does nothing while it runs. For the main thread: the kernel ends it with the thread that started it."""
        self.wanted = True
        if self.running:
            return
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                guarded(self.argv),
                env={**os.environ, **self.environment},
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.starts += 1

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def pid(self) -> int:
        return self.popen.pid if self.popen else 0

    def signal(self, number: int) -> bool:
        """False when it does not run."""
        if not self.running:
            return False
        assert self.popen is not None
        self.popen.send_signal(number)
        return True

    def kill(self, *, keep_down: bool = False) -> bool:
        """Sends SIGKILL and waits for the end. With `keep_down` it stays down until start()."""
        self.wanted = not keep_down
        if not self.signal(signal.SIGKILL):
            return False
        self.gone()
        return True

    def gone(self, seconds: float = 30.0) -> None:
        """Waits until it has ended."""
        assert self.popen is not None
        self.exits.append(self.popen.wait(seconds))

    def children(self) -> list[psutil.Process]:
        """Children that work on an attempt."""
        try:
            below = psutil.Process(self.pid).children(recursive=True) if self.running else []
            return [child for child in below if " ".join(child.cmdline()).endswith(_INPUT)]
        except psutil.Error:
            return []


class Stack:
    """nats-server, gateways on one database, and workers; a context manager that leaves no process behind.

    With `real`, workers are the product's own, on the tiny model in `model`; else their children need no torch.
    """

    def __init__(
        self,
        home: Path,
        *,
        gateways: int = 1,
        trainers: int = 2,
        postgres: bool = False,
        model: Path | None = None,
    ) -> None:
        self.home = home.resolve()
        self.model = model
        self.artifacts = self.home / "artifacts"
        self.failpoints = self.home / "failpoints"
        self.clock = self.home / "clock"
        for folder in (self.failpoints, self.home / "logs", self.artifacts):
            folder.mkdir(parents=True)
        self.postgres = PostgresServer() if postgres else None
        self.sqlite = self.home / "gateway.sqlite"
        self.database_url = self.postgres.url if self.postgres else f"sqlite:///{self.sqlite}"
        authority = CertificateAuthority.open(self.home / "tls" / "ca")
        self._certificates = {
            name: authority.issue(self.home / "tls" / name, name, ("127.0.0.1",))
            for name in ("nats", "gateway", *SERVICES)
        }
        self._nats = nats.configure(self.home / "nats", free_port(), WORKERS, self._certificates["nats"])
        self.nats_store = self.home / "nats" / "store"
        self.nats = self._proc("nats", self._nats.argv, {})
        self.gateways = [self._gateway(number) for number in range(1, gateways + 1)]
        self.trainers = [self._worker("trainer", f"trainer-{number}") for number in range(1, trainers + 1)]
        others = [self._worker(name, name) for name in SERVICES if name != "trainer"]
        self.workers = {proc.name: proc for proc in (*self.trainers, *others)}
        self.unexpected_exits: list[str] = []
        self._revive_at: dict[str, float] = {}
        self._frozen: dict[Path, float] = {}

    @property
    def procs(self) -> list[Proc]:
        return [self.nats, *self.gateways, *self.workers.values()]

    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{proc.environment['FTF_GATEWAY_LISTEN'].rpartition(':')[2]}" for proc in self.gateways]

    def start(self) -> None:
        """Returns once every process listens."""
        if self.postgres:
            self.postgres.start()
        self.nats.start()
        # One after the other: the first brings the schema up to date.
        for proc in self.gateways:
            proc.start()
            self.until_listening(proc)
        for proc in self.workers.values():
            proc.start()
        for proc in self.workers.values():
            self.until_listening(proc)

    def until_listening(self, proc: Proc) -> None:
        """Waits until the process says that it listens. RuntimeError with its log when it does not."""
        deadline = time.monotonic() + _START_SECONDS
        while proc.log.read_bytes().count(b" listens on ") < proc.starts:
            if time.monotonic() > deadline or not proc.running:
                raise RuntimeError(f"{proc.name} does not start:\n{proc.log.read_text()[-4000:]}")
            time.sleep(0.05)

    def keep(self) -> None:
        """Restarts processes that ended by themselves, as a process manager does, and continues those that a failpoint
        has stopped for longer than a lease."""
        for proc in self.procs:
            if proc.running or not proc.wanted or proc.popen is None:
                continue
            due = self._revive_at.get(proc.name)
            if due is None:
                self._revive_at[proc.name] = time.monotonic() + _REVIVE_SECONDS
                self.unexpected_exits.append(f"{proc.name} exited with {proc.popen.returncode}")
            elif time.monotonic() >= due:
                del self._revive_at[proc.name]
                proc.start()

        for taken in self.failpoints.glob("*.taken"):
            if taken not in self._frozen and taken.read_text() == "stop":
                self._frozen[taken] = time.monotonic() + LEASE_SECONDS + 2.0
            elif 0 < self._frozen.get(taken, 0) <= time.monotonic():
                self._frozen[taken] = 0.0
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(int(taken.name.split(".")[-2])).send_signal(signal.SIGCONT)

    def heal(self) -> None:
        """Ends all lasting faults: continues stopped processes, starts those that are down, disarms failpoints."""
        for armed in self.failpoints.iterdir():
            if not armed.name.endswith(".taken"):
                armed.unlink(missing_ok=True)
        for proc in self.procs:
            proc.signal(signal.SIGCONT)
            for child in proc.children():
                child.send_signal(signal.SIGCONT)
            proc.start()

    def stop(self) -> None:
        """Ends every process: SIGTERM to workers and gateways, then SIGKILL."""
        for proc in reversed(self.procs):
            proc.wanted = False
            proc.signal(signal.SIGCONT)
            proc.signal(signal.SIGTERM)
            try:
                if proc.running:
                    proc.gone(20.0)
            except subprocess.TimeoutExpired:
                self.unexpected_exits.append(f"{proc.name} did not heed SIGTERM")
                proc.kill(keep_down=True)

    def children(self) -> list[psutil.Process]:
        """Returns all processes that work on an attempt, whatever their parent."""
        return self._ours(_INPUT)

    def orphans(self) -> list[str]:
        """Returns the processes that still run after everything was stopped."""
        found = []
        for process in self._ours():
            if "postgres" not in process.name():
                found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
        return found

    def _ours(self, last_argument: str = "") -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                if process.pid != os.getpid() and str(self.home) in command and command.endswith(last_argument):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def lock_sqlite(self) -> sqlite3.Connection:
        """Another process's write lock, until the connection is closed. sqlite3.OperationalError where there is one."""
        connection = sqlite3.connect(self.sqlite, isolation_level=None, timeout=5)
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            connection.close()
            raise
        return connection

    def wipe_nats(self) -> None:
        shutil.rmtree(self.nats_store, ignore_errors=True)

    def drain(self, trainer: Proc) -> None:
        """Calls DrainTrainer. Raises grpc.RpcError if the trainer is unreachable."""
        gateway = Identity(self._certificates["gateway"]).channel_credentials()
        with grpc.secure_channel(trainer.environment["FTF_TRAINER_LISTEN"], gateway) as channel:
            stub = trainer_service_pb2_grpc.TrainerServiceStub(channel)
            stub.DrainTrainer(trainer_service_pb2.DrainTrainerRequest(), timeout=2)

    def clients(self) -> list[Client]:
        return [Client(address) for address in self.addresses()]

    def log_tails(self, size: int = 3000) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-size:]}" for log in sorted(self.home.glob("logs/*.log")))

    def _gateway(self, number: int) -> Proc:
        return self._proc(
            f"gateway-{number}",
            [sys.executable, "-m", "tests.chaos.gateway", str(self.clock)],
            {
                **self._identity("gateway"),
                "FTF_GATEWAY_INSECURE": "true",
                "FTF_GATEWAY_LISTEN": f"127.0.0.1:{free_port()}",
                "FTF_GATEWAY_NATS_USER": "gateway",
                "FTF_GATEWAY_NATS_PASSWORD": self._nats.passwords["gateway"],
                "FTF_GATEWAY_DATABASE_URL": self.database_url,
                "FTF_GATEWAY_LEASE_SECONDS": str(LEASE_SECONDS),
            },
        )

    def _worker(self, service: str, name: str) -> Proc:
        module = [f"services.{service}"] if self.model else ["tests.chaos.worker", service]
        upper = service.upper()
        return self._proc(
            name,
            # The home as an argument nobody reads: an orphan is known by it.
            [sys.executable, "-m", *module, str(self.home)],
            {
                **self._identity(service),
                f"FTF_{upper}_LISTEN": f"127.0.0.1:{free_port()}",
                f"FTF_{upper}_NATS_USER": upper.lower(),
                f"FTF_{upper}_NATS_PASSWORD": self._nats.passwords[upper.lower()],
                "FTF_STALL_SECONDS": "30" if self.model else "4",
                "FTF_LOADING_STALL_SECONDS": "120" if self.model else "8",
                "FTF_CANCEL_GRACE_SECONDS": "1",
                "FTF_DRAIN_SECONDS": "10",
                "FTF_THREADS": "1",
            },
        )

    def _identity(self, service: str) -> dict[str, str]:
        files, prefix = self._certificates[service], f"FTF_{service.upper()}_SERVICE"
        return {
            f"{prefix}_CERT": str(files.certificate),
            f"{prefix}_KEY": str(files.key),
            f"{prefix}_CA": str(files.authority),
        }

    def _proc(self, name: str, argv: Sequence[str], environment: dict[str, str]) -> Proc:
        model = self.model or self.home / "chain"
        common = {
            "FTF_HOME": str(self.home / name),
            "FTF_ARTIFACTS_URL": self.artifacts.as_uri(),
            "FTF_NATS_URL": self._nats.url,
            "FTF_NODE_ID": name,
            "FTF_FAILPOINTS": str(self.failpoints),
            "FTF_MODELS": json.dumps({"tiny" if self.model else "chain": str(model)}),
            "PYTHONPATH": os.pathsep.join(path for path in (os.environ.get("PYTHONPATH"), str(_ROOT)) if path),
        }
        return Proc(name, argv, {**common, **environment}, self.home / "logs" / f"{name}.log")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for proc in reversed(self.procs):
            proc.kill(keep_down=True)
        for process in self._ours():
            if "postgres" not in process.name():
                process.kill()
        if self.postgres:
            self.postgres.close()
