import asyncio
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from chassis import failpoints
from chassis.attempt.stage import Stage
from chassis.attempt.stage_worker import StageWorker
from chassis.attempt.time_limits import TimeLimits
from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from tests.chassis import peers
from tests.chassis.peers import ChildStage, Gateway, Settings
from tests.servers.nats import NatsServer

StartWorker = Callable[..., Awaitable[StageWorker]]
StartSupervisor = Callable[[], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    """A connection to the running server."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    yield bus
    await bus.close()


@pytest.fixture
async def gateway(bus: Bus) -> AsyncIterator[Gateway]:
    gateway = Gateway(bus)
    await bus.ensure_streams()
    await gateway.open()
    yield gateway
    await gateway.close()


@pytest.fixture
async def start_worker(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[StartWorker]:
    """Starts a worker with a connection of its own; keywords are its time limits and its settings."""
    started: list[tuple[StageWorker, Bus]] = []

    async def start(stage: Stage | None = None, **settings: object) -> StageWorker:
        own = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "worker")
        names = {field.name for field in dataclasses.fields(TimeLimits)}
        limits = TimeLimits(**{name: settings.pop(name) for name in names & settings.keys()})  # type: ignore[arg-type]
        made = Settings.model_validate(
            {"home": tmp_path / "home", "node_id": "trainer-1", "cancel_grace_seconds": 0.5, "drain_seconds": 1.0}
            | settings
        )
        worker = StageWorker(own, ArtifactStore(made.artifacts), stage or ChildStage(), made, limits)
        started.append((worker, own))
        await worker.start()
        return worker

    yield start
    for worker, own in started:
        worker.hurry()
        await worker.stop()
        await own.close()


@pytest.fixture
async def start_supervisor(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[StartSupervisor]:
    """Starts a worker as a process of its own, in the same home."""
    started: list[asyncio.subprocess.Process] = []

    async def start() -> asyncio.subprocess.Process:
        arguments = [str(tmp_path / "home"), nats_server.url, nats_server.user, nats_server.password]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            peers.__name__,
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "SUPERVISOR": " ".join(arguments),
                "FTF_FAILPOINTS": str(tmp_path / "failpoints"),
                "FTF_TRAINER_WARM_SPARE": "true",
            },
            stdout=asyncio.subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout
        assert await process.stdout.readline()
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this process's failpoints."""
    folder = tmp_path / "failpoints"
    folder.mkdir()
    monkeypatch.setattr(failpoints, "_FOLDER", str(folder))
    return folder
