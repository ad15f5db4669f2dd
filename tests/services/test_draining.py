"""Shutdown of a service that has work in progress."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from chassis.bus.event_bus import Bus
from tests.chassis.peers import ITEM, Gateway, claim_record, kind, wait_for_exit
from tests.servers.nats import NatsServer

Start = Callable[[], Awaitable[asyncio.subprocess.Process]]


@pytest.fixture
async def gateway(nats_server: NatsServer) -> AsyncIterator[Gateway]:
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    gateway = Gateway(bus)
    await gateway.open()
    yield gateway
    await gateway.close()
    await bus.close()


@pytest.fixture
async def start(nats_server: NatsServer, tmp_path: Path) -> AsyncIterator[Start]:
    started: list[asyncio.subprocess.Process] = []

    async def start() -> asyncio.subprocess.Process:
        environment = {
            "FTF_HOME": str(tmp_path / "home"),
            **nats_server.environment("trainer"),
            "FTF_INSECURE": "true",
            "FTF_TRAINER_LISTEN": "127.0.0.1:0",
            "FTF_TRAINER_DRAIN_SECONDS": "600",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.services.drained", env={**os.environ, **environment}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_sigterm_saves_a_checkpoint_and_releases_the_job(gateway: Gateway, start: Start, tmp_path: Path) -> None:
    """Scaling in must cost no step."""
    gateway.do = "wait"
    process = await start()
    await gateway.bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    process.send_signal(signal.SIGTERM)
    assert (await gateway.wait_for_ending()).stage_released.reason == "DRAINED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)
    async with asyncio.timeout(30):
        assert await process.wait() == 0


@pytest.mark.parametrize("again", [signal.SIGTERM, signal.SIGINT])
async def test_second_signal_kills_the_child(
    gateway: Gateway, start: Start, tmp_path: Path, again: signal.Signals
) -> None:
    """Otherwise a user who presses Ctrl-C twice would still wait ten minutes for the drain."""
    gateway.do = "stubborn"
    process = await start()
    await gateway.bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    child = claim_record(tmp_path).child_pid
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        while not any(node.draining for node in await gateway.bus.nodes()):  # noqa: ASYNC110 - the bucket is asked
            await asyncio.sleep(0.05)
        process.send_signal(again)
        assert await process.wait() == 0
    await wait_for_exit(child)
    assert gateway.events[-1].stage_released.reason == "DRAINED"


async def test_hanging_download_does_not_delay_shutdown(gateway: Gateway, start: Start) -> None:
    """The machine would otherwise be killed at an arbitrary moment."""
    gateway.do = "fetch"
    process = await start()
    await gateway.bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("phase")
    process.send_signal(signal.SIGTERM)
    assert (await gateway.wait_for_ending()).stage_released.reason == "DRAINED"
    async with asyncio.timeout(30):
        assert await process.wait() == 0
