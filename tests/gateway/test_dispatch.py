"""READY attempts reach workers whatever the broker forgets; silent claims end, and only those."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from chassis.bus import Bus, WorkMessage
from gateway.acceptance import Acceptance
from gateway.database import Database
from gateway.dispatch import Dispatcher
from gateway.leases import LeaseWatch
from gateway.ledger import Ledger
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create, job_of
from tests.nats import NatsServer


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    yield bus
    await bus.close()


@asynccontextmanager
async def running(loop: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(loop)
    yield
    task.cancel()
    await asyncio.wait([task])


async def next_item(bus: Bus, seconds: float = 20) -> WorkMessage:
    message = await bus.work("probe", "default").next(seconds)
    assert message is not None
    return message


async def test_a_new_job_is_offered_at_once(database: Database, bus: Bus, told: Recorder) -> None:
    ledger = Ledger(database, told.publish, Dispatcher(database, bus).offer, told.discard)
    job_id = await create(ledger)
    assert (await next_item(bus)).item.job_id == job_id


async def test_a_job_created_without_a_broker_is_offered_when_it_is_back(
    database: Database, bus: Bus, told: Recorder, nats_server: NatsServer
) -> None:
    dispatcher = Dispatcher(database, bus)
    nats_server.stop()
    job_id = await create(Ledger(database, told.publish, dispatcher.offer, told.discard))
    nats_server.restart()
    async with running(dispatcher.run()):
        assert (await next_item(bus)).item.job_id == job_id


async def test_a_wiped_broker_loses_no_work(
    database: Database, bus: Bus, told: Recorder, nats_server: NatsServer
) -> None:
    dispatcher = Dispatcher(database, bus)
    job_id = await create(Ledger(database, told.publish, dispatcher.offer, told.discard))
    async with running(dispatcher.run()):
        nats_server.stop()
        nats_server.wipe()
        nats_server.restart()
        assert (await next_item(bus)).item.job_id == job_id


async def test_a_silent_claim_expires_and_a_beating_one_does_not(
    database: Database, bus: Bus, ledger: Ledger, acceptance: Acceptance, told: Recorder
) -> None:
    silent_id = await create(ledger)
    silent = Worker(acceptance, "a" * 32)
    await silent.claim(told.offered[-1])
    beating_id = await create(ledger)
    beating = Worker(acceptance, "b" * 32)
    await beating.claim(told.offered[-1])
    watch = LeaseWatch(database, bus, acceptance, lease_seconds=2)
    async with running(watch.run()), asyncio.timeout(20):
        while (await job_of(ledger, silent_id)).failed_attempts == 0:
            await beating.report()
    assert (await job_of(ledger, silent_id)).state == "JOB_STATE_VALIDATING"
    assert (await job_of(ledger, beating_id)).failed_attempts == 0


async def test_nothing_expires_while_the_broker_is_away(
    database: Database,
    bus: Bus,
    ledger: Ledger,
    acceptance: Acceptance,
    told: Recorder,
    nats_server: NatsServer,
) -> None:
    job_id = await create(ledger)
    worker = Worker(acceptance)
    await worker.claim(told.offered[-1])
    watch = LeaseWatch(database, bus, acceptance, lease_seconds=1)
    nats_server.stop()
    async with running(watch.run()):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(4):
                await asyncio.Event().wait()
    assert (await job_of(ledger, job_id)).failed_attempts == 0
