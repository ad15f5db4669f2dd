"""Starts and stops the processes of one system in order: nats-server, a gateway and the four services."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from chassis.bus.permissions import DEFAULT_POOL, gateway_user, worker_user
from standalone import nats
from standalone.ports import LOOPBACK, free_port
from standalone.processes import Program, SupervisedProcess, serving

SERVICES = ("probe", "trainer", "evaluator", "exporter")
# Longer than a worker's own drain_seconds, after which the worker itself kills what still runs.
_DRAIN_SECONDS = 75.0


class Stack:
    """The processes of one home folder. `processes` has them by name after the start."""

    def __init__(self, home: Path, port: int, notify: Callable[[str], None]) -> None:
        self.home = home
        self.address = f"{LOOPBACK}:{port}"
        self.logs = home / "logs"
        self.processes: dict[str, SupervisedProcess] = {}
        self._notify = notify

    async def start(self) -> None:
        """Returns when every process is ready.

        Raises StartFailed or NatsServerMissing; the processes that were started until then keep running.
        """
        users = {"gateway": gateway_user(), **{name: worker_user(name) for name in SERVICES}}
        users["trainer"] = worker_user("trainer", os.environ.get("FTF_TRAINER_POOL", DEFAULT_POOL))
        broker = nats.configure(self.home / "nats", free_port(), users.values())
        await self._keep(Program("nats-server", broker.argv, broker.ready)).start()
        programs = [
            self._server(
                name,
                "gateway" if name == "gateway" else f"services.{name}",
                self.address if name == "gateway" else f"{LOOPBACK}:{free_port()}",
                {
                    "NATS_URL": broker.url,
                    "NATS_USER": user.name,
                    "NATS_PASSWORD": broker.passwords[user.name],
                    "INSECURE": "true",
                },
                stop_seconds=10.0 if name == "gateway" else _DRAIN_SECONDS,
            )
            for name, user in users.items()
        ]
        # All are registered before any is started: if one start fails, `stop` must find all others.
        await asyncio.gather(*(kept.start() for kept in [self._keep(program) for program in programs]))

    async def stop(self) -> None:
        """Drains the services, then stops the gateway, which receives their last reports, then the broker."""
        for names in (SERVICES, ("gateway",), ("nats-server",)):
            await asyncio.gather(*(self.processes[name].stop() for name in names if name in self.processes))

    def kill(self) -> None:
        """Kills every process. Accepted events are kept; a running job restarts from its last checkpoint."""
        for process in self.processes.values():
            process.kill()

    def _keep(self, program: Program) -> SupervisedProcess:
        kept = SupervisedProcess(program, self.home, self.logs, self._notify)
        self.processes[program.name] = kept
        return kept

    def _server(
        self, name: str, module: str, address: str, broker: Mapping[str, str], *, stop_seconds: float
    ) -> Program:
        settings = {"HOME": str(self.home), "LISTEN": address, **broker}
        # Settings named for the service override those that the user has set for all processes.
        env = {f"FTF_{name.upper()}_{key}": value for key, value in settings.items()}
        return Program(name, (sys.executable, "-m", module), serving(address), env, stop_seconds)
