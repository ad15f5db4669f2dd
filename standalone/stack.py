"""One system: nats-server, a gateway and the four services, started and stopped in order."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from standalone import nats
from standalone.ports import LOOPBACK, free_port
from standalone.processes import KeptProcess, Program, serving

SERVICES = ("probe", "trainer", "evaluator", "exporter")
# Longer than a worker's own drain_seconds: by then it has killed what would not end.
_DRAIN_SECONDS = 75.0


class Stack:
    """The processes on one home. `processes` names each once the stack was started."""

    def __init__(self, home: Path, port: int, notify: Callable[[str], None]) -> None:
        self.home = home
        self.address = f"{LOOPBACK}:{port}"
        self.logs = home / "logs"
        self.processes: dict[str, KeptProcess] = {}
        self._notify = notify

    async def start(self) -> None:
        """Returns when every process is ready. Raises StartFailed or NatsServerMissing; what runs by then runs on."""
        broker = nats.configure(self.home / "nats", free_port())
        await self._keep(Program("nats-server", broker.argv, broker.ready)).start()
        programs = [self._server("gateway", "gateway", self.address, broker, stop_seconds=10.0)]
        programs += [
            self._server(name, f"services.{name}", f"{LOOPBACK}:{free_port()}", broker, stop_seconds=_DRAIN_SECONDS)
            for name in SERVICES
        ]
        # Preparing all before starting any: a start that fails must leave every other where `stop` finds it.
        await asyncio.gather(*(kept.start() for kept in [self._keep(program) for program in programs]))

    async def stop(self) -> None:
        """Drains the services, then stops the gateway, which takes their last reports, then the broker."""
        for names in (SERVICES, ("gateway",), ("nats-server",)):
            await asyncio.gather(*(self.processes[name].stop() for name in names if name in self.processes))

    def kill(self) -> None:
        """Ends everything now. Nothing that was accepted is lost; what runs starts again from its last checkpoint."""
        for process in self.processes.values():
            process.kill()

    def _keep(self, program: Program) -> KeptProcess:
        kept = KeptProcess(program, self.home, self.logs, self._notify)
        self.processes[program.name] = kept
        return kept

    def _server(self, name: str, module: str, address: str, broker: nats.NatsServer, *, stop_seconds: float) -> Program:
        # Named for the service: these win over whatever a user has set for all processes.
        prefix = f"FTF_{name.upper()}_"
        env = {
            f"{prefix}HOME": str(self.home),
            f"{prefix}LISTEN": address,
            f"{prefix}NATS_URL": broker.url,
            f"{prefix}NATS_USER": broker.user,
            f"{prefix}NATS_PASSWORD": broker.password,
        }
        return Program(name, (sys.executable, "-m", module), serving(address), env, stop_seconds)
