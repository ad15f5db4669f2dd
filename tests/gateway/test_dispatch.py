"""READY attempts reach workers whatever the broker forgets."""

import asyncio
from pathlib import Path

import pytest

from chassis.bus.event_bus import Bus, WorkMessage
from chassis.bus.streams import WORK_STREAM
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.work_pb2 import ClaimRequest, WorkItem
from gateway.sql.database import Database
from gateway.sql.tables import Attempt
from gateway.work import lifecycle
from gateway.work.dispatch import Dispatcher
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, a_job, attempts_of, create, running
from tests.servers.nats import NatsServer


async def next_item(bus: Bus, seconds: float = 20) -> WorkMessage:
    message = await bus.work("probe", "default").next(seconds)
    assert message is not None
    return message


async def offered(bus: Bus, job_id: str, attempt: int = 1) -> WorkMessage:
    """The item of that attempt; others, which may come more than once, are taken off the queue."""
    while True:
        message = await next_item(bus)
        if (message.item.job_id, message.item.attempt) == (job_id, attempt):
            return message
        await message.ack()


async def queued(bus: Bus, count: int) -> None:
    """Waits until so many items are."""
    async with asyncio.timeout(20), bus.jetstream() as js:
        while (await js.stream_info(WORK_STREAM)).state.messages < count:
            pass


async def create_waiting(ledger: Ledger, seconds: float, written_ahead: float = 0) -> str:
    """A job that may not start yet, created when the clock was so many seconds ahead."""
    async with ledger.create(a_job()) as decision:
        lifecycle.open_attempt(decision, "STAGE_PREFLIGHT", delay=seconds)
        assert decision.ready is not None
        decision.ready.create_time += int(written_ahead * 1e6)
        decision.ready.not_before += int(written_ahead * 1e6)
    return decision.work.id


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


async def test_a_lost_stream_loses_no_work(database: Database, bus: Bus, told: Recorder) -> None:
    """Somebody tidied up the broker; no connection broke."""
    dispatcher = Dispatcher(database, bus)
    async with running(dispatcher.run()):
        job_id = await create(Ledger(database, told.publish, dispatcher.offer, told.discard))
        assert (await next_item(bus)).item.job_id == job_id
        async with bus.jetstream() as js:
            await js.delete_stream(WORK_STREAM)
        assert (await next_item(bus)).item.job_id == job_id


async def test_a_broker_rolled_back_to_an_older_copy_is_put_right(
    database: Database, bus: Bus, told: Recorder, nats_server: NatsServer, tmp_path: Path
) -> None:
    """Its backup offers what was done long ago and lacks what is to be done."""
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, told.publish, dispatcher.offer, told.discard)
    worker = Worker(WorkerRequests(ledger, NoTrainers()))
    async with running(dispatcher.run()):
        job_id = await create(ledger)
        await queued(bus, 1)
        await asyncio.to_thread(nats_server.back_up, tmp_path / "copy")
        await (await offered(bus, job_id)).ack()
        (attempt,) = await attempts_of(ledger, job_id)
        await worker.claim(attempt)
        await worker.fail()
        await (await offered(bus, job_id, attempt=2)).ack()
        await asyncio.to_thread(nats_server.roll_back, tmp_path / "copy")
        found = set()
        while found != {1, 2}:
            message = await next_item(bus)
            found.add(message.item.attempt)
            await message.ack()
        assert (await worker.claim(attempt)).refused.reason == "ENDED"


async def test_a_retry_that_has_to_wait_is_offered_when_it_is_due(database: Database, bus: Bus, told: Recorder) -> None:
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, told.publish, dispatcher.offer, told.discard)
    async with running(dispatcher.run()):
        late_id = await create_waiting(ledger, seconds=1.5)
        prompt_id = await create(ledger)
        assert (await next_item(bus)).item.job_id == prompt_id
        await offered(bus, late_id)


async def test_a_clock_that_was_set_back_delays_no_retry(database: Database, bus: Bus, told: Recorder) -> None:
    """It would wait for as long as the clock was wrong, be it a year."""
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, told.publish, dispatcher.offer, told.discard)
    job_id = await create_waiting(ledger, seconds=0.5, written_ahead=3600)
    async with running(dispatcher.run()):
        await offered(bus, job_id)


async def test_an_item_that_can_not_be_published_holds_up_no_other(
    database: Database, bus: Bus, told: Recorder
) -> None:
    """One poisonous row, and every job behind it waits for ever."""
    dispatcher = Dispatcher(database, bus)
    ledger = Ledger(database, told.publish, dispatcher.offer, told.discard)
    bad_id = await create(ledger)
    await (await next_item(bus)).ack()
    async with database.write() as session:
        attempt = await session.get(Attempt, (bad_id, "STAGE_PREFLIGHT", 1))
        assert attempt is not None
        attempt.stage, attempt.pool = "STAGE_TRAINING", "not a pool"
    async with running(dispatcher.run()):
        await offered(bus, await create(ledger))
        # One that nobody has offered yet: it comes from SQL, as the bad one does.
        await offered(bus, await create(Ledger(database, told.publish, told.offer, told.discard)))


@pytest.mark.parametrize("item", [WorkItem(job_id="ftjob_none", stage=Stage.STAGE_PREFLIGHT, attempt=1), WorkItem()])
async def test_an_item_of_no_attempt_is_refused(
    ledger: Ledger, acceptance: WorkerRequests, told: Recorder, item: WorkItem
) -> None:
    """An answer lets a worker drop it; a failure would have it come back for ever."""
    job_id = item.job_id or await create(ledger)
    for stage in (item.stage, 99):
        request = ClaimRequest(job_id=job_id, attempt=item.attempt, claim_id="a" * 32)
        request.stage = stage  # type: ignore[assignment]
        assert (await acceptance.claim(request, ("probe", "default"))).refused.reason in ("UNKNOWN", "ENDED")


async def test_a_worker_gets_no_work_of_another_service_or_pool(
    ledger: Ledger, acceptance: WorkerRequests, told: Recorder
) -> None:
    """A stolen trainer would read the data of every job."""
    await create(ledger)
    attempt = told.offered[-1]
    request = ClaimRequest(
        job_id=attempt.work_id, stage=Stage.Value(attempt.stage), attempt=attempt.attempt, claim_id="a" * 32
    )
    for queue in (("trainer", "default"), ("probe", "gpu")):
        assert (await acceptance.claim(request, queue)).refused.reason == "UNKNOWN"
    assert (await acceptance.claim(request, ("probe", "default"))).HasField("assignment")
