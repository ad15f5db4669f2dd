"""A watch delivers every event once and in order: from history, live, after lost messages, and with filters."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import event
from sqlmodel import col, delete

from chassis.bus.event_bus import Bus
from chassis.errors import NotFound, OutOfRange, Unavailable
from finetuneflow.v1.event_pb2 import Eval, Severity, Warning
from finetuneflow.v1.fine_tuning_service_pb2 import WatchFineTuningJobResponse
from gateway.sql.database import Database
from gateway.sql.tables import Attempt, Metric, Work, WorkEvent
from gateway.watch.cursor import Cursor
from gateway.watch.fanout import Fanout
from gateway.watch.frames import Frame, frame_of_stored, frames_of_run
from gateway.watch.pages import EventFilter, Page
from gateway.watch.ring import Ring
from gateway.work import lifecycle
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from tests.fakes.planning import NoTrainers
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create, log_at
from tests.servers.nats import NatsServer


@pytest.fixture
async def fanout(database: Database, nats_server: NatsServer) -> AsyncIterator[Fanout]:
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    fanout = Fanout(database, bus)
    await fanout.start()
    tail_check = asyncio.create_task(fanout.run())
    yield fanout
    tail_check.cancel()
    await bus.close()


@pytest.fixture
def live(database: Database, fanout: Fanout, recorder: Recorder) -> Ledger:
    """A ledger whose frames go over the broker."""
    return Ledger(database, fanout.publish, recorder.offer, recorder.discard)


class Watcher:
    """Collects a watch in the background."""

    def __init__(self, fanout: Fanout, job_id: str, after: int = 0, kinds: tuple[str, ...] = (), loud: int = 0) -> None:
        self.sequences: list[int] = []
        self.through = after
        self._news = asyncio.Condition()
        stream = fanout.watch(FINE_TUNING_JOB, job_id, "default", after, kinds, loud, heartbeat_seconds=30)
        self.task = asyncio.create_task(self._follow(stream))

    async def _follow(self, stream: AsyncIterator[bytes]) -> None:
        async for data in stream:
            response = WatchFineTuningJobResponse.FromString(data)
            async with self._news:
                self.sequences += [event.sequence for event in response.events]
                self.through = response.through_sequence
                self._news.notify_all()

    async def wait_for_sequence(self, sequence: int) -> None:
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: self.through >= sequence)

    async def sequences_at_end(self) -> list[int]:
        async with asyncio.timeout(10):
            await self.task
        return self.sequences


async def test_notification_of_known_sequence_does_not_wake_watcher() -> None:
    """The watcher would query SQL without need; this once blocked the gateway."""
    ring = Ring()
    ring.advance(5)
    cursor = Cursor(5, heartbeat_seconds=10)
    cursor.rest()
    ring.cursors.add(cursor)
    assert not await ring.beyond(cursor)
    assert not cursor.overdue
    ring.advance(6)
    assert await ring.beyond(cursor)
    cursor.close()


async def trained(ledger: Ledger, recorder: Recorder, acceptance: WorkerRequests, steps: int) -> tuple[str, Worker]:
    job_id = await create(ledger)
    first = Worker(acceptance)
    await first.claim(recorder.offered[-1])
    await first.complete()
    worker = Worker(acceptance, "b" * 32)
    await worker.claim(recorder.offered[-1])
    await worker.report(*(log_at(step) for step in range(1, steps + 1)))
    return job_id, worker


async def cancel(ledger: Ledger, job_id: str, worker: Worker) -> None:
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    await worker.fail()


async def test_early_and_late_watchers_receive_the_same_events(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    acceptance = WorkerRequests(live, NoTrainers())
    job_id, worker = await trained(live, recorder, acceptance, 0)
    early = Watcher(fanout, job_id)
    await worker.report(*(log_at(step) for step in range(1, 700)))
    await early.wait_for_sequence(600)
    late = Watcher(fanout, job_id)
    await worker.report(*(log_at(step) for step in range(700, 900)))
    await cancel(live, job_id, worker)
    everything = await early.sequences_at_end()
    assert everything == list(range(1, len(everything) + 1))
    assert await late.sequences_at_end() == everything
    assert await Watcher(fanout, job_id, after=450).sequences_at_end() == everything[450:]


async def test_unpublished_last_events_are_delivered(
    live: Ledger, ledger: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 3)
    watcher = Watcher(fanout, job_id)
    silent = WorkerRequests(ledger, NoTrainers())
    worker.acceptance = silent
    await worker.report(log_at(4), log_at(5))
    await watcher.wait_for_sequence(recorder.frames[-1].sequence)
    worker.acceptance = WorkerRequests(live, NoTrainers())
    await worker.report(log_at(6))
    await cancel(live, job_id, worker)
    sequences = await watcher.sequences_at_end()
    assert sequences == list(range(1, len(sequences) + 1))


async def test_gateway_without_broker_streams_events_it_accepts(
    database: Database, recorder: Recorder, nats_server: NatsServer
) -> None:
    """Verbs arrive over gRPC, and their watchers may be on the same gateway. No tail check runs in this test."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.close()
    lonely = Fanout(database, bus)
    ledger = Ledger(database, lonely.publish, recorder.offer, recorder.discard)
    job_id = await create(ledger)
    watcher = Watcher(lonely, job_id)
    await watcher.wait_for_sequence(1)
    async with ledger.decide(job_id) as decision:
        lifecycle.cancel(decision)
    assert len(await watcher.sequences_at_end()) > 1


async def test_stopping_gateway_ends_its_watches_immediately(live: Ledger, fanout: Fanout, recorder: Recorder) -> None:
    """Otherwise the stop would wait for them; clients continue at another gateway."""
    job_id = await create(live)
    watcher = Watcher(fanout, job_id)
    await watcher.wait_for_sequence(1)
    fanout.end()
    with pytest.raises(Unavailable):
        await watcher.sequences_at_end()
    with pytest.raises(Unavailable):
        await Watcher(fanout, job_id, after=1).sequences_at_end()


async def test_filtered_watch_advances_its_cursor(live: Ledger, fanout: Fanout, recorder: Recorder) -> None:
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 5)
    logs = Watcher(fanout, job_id, kinds=("log",))
    loud = Watcher(fanout, job_id, loud=Severity.SEVERITY_ERROR)
    await cancel(live, job_id, worker)
    assert len(await logs.sequences_at_end()) == 5
    assert logs.through > logs.sequences[-1]
    assert await loud.sequences_at_end() == []


async def test_watch_without_events_sends_heartbeats(live: Ledger, fanout: Fanout, recorder: Recorder) -> None:
    job_id, _ = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 1)
    stream = fanout.watch(FINE_TUNING_JOB, job_id, "default", 0, (), 0, heartbeat_seconds=0.05)
    async with asyncio.timeout(10):
        answers = [WatchFineTuningJobResponse.FromString(await anext(stream)) for _ in range(3)]
    assert answers[0].events
    assert not answers[2].events
    assert answers[2].through_sequence == answers[0].through_sequence
    await stream.aclose()  # type: ignore[attr-defined]


async def test_new_watch_without_events_receives_empty_response_immediately(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    """Otherwise it cannot tell an idle gateway from an unreachable one, and counts both as an outage."""
    job_id, _ = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 1)
    read = fanout.watch(FINE_TUNING_JOB, job_id, "default", 0, (), 0, heartbeat_seconds=3600)
    filtered = fanout.watch(FINE_TUNING_JOB, job_id, "default", 0, ("checkpoint",), 0, heartbeat_seconds=3600)
    async with asyncio.timeout(10):
        through = WatchFineTuningJobResponse.FromString(await anext(read)).through_sequence
        tip = fanout.watch(FINE_TUNING_JOB, job_id, "default", through, (), 0, heartbeat_seconds=3600)
        for stream in (filtered, tip):
            answer = WatchFineTuningJobResponse.FromString(await anext(stream))
            assert (list(answer.events), answer.through_sequence) == ([], through)
    for stream in (read, filtered, tip):
        await stream.aclose()  # type: ignore[attr-defined]


async def test_a_cursor_beyond_the_end_and_an_unknown_job_are_refused(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    job_id, _ = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 1)
    with pytest.raises(OutOfRange):
        await anext(fanout.watch(FINE_TUNING_JOB, job_id, "default", 10_000, (), 0, 1))
    with pytest.raises(NotFound):
        await anext(fanout.watch(FINE_TUNING_JOB, "ftjob_none", "default", 0, (), 0, 1))


EVERYTHING = EventFilter(frozenset(), 0)


def sequences_of(page: Page | None) -> list[int]:
    assert page is not None
    return [event.sequence for event in WatchFineTuningJobResponse.FromString(page.response).events]


async def test_ring_restarts_after_missing_sequences_and_never_repeats(ledger: Ledger, recorder: Recorder) -> None:
    await trained(ledger, recorder, WorkerRequests(ledger, NoTrainers()), 20)
    frames = recorder.frames
    ring = Ring()
    ring.extend(frames[:5])
    ring.extend(frames[3:8])
    assert sequences_of(ring.page(0, EVERYTHING)) == list(range(1, 9))
    ring.extend(frames[10:12])
    assert ring.page(5, EVERYTHING) is None, "a page that the ring does not hold must be read from SQL"
    assert sequences_of(ring.page(10, EVERYTHING)) == [11, 12]


async def test_frames_round_trip_through_serialization(ledger: Ledger, recorder: Recorder) -> None:
    await trained(ledger, recorder, WorkerRequests(ledger, NoTrainers()), 3)
    run = b"".join(frame.data for frame in recorder.frames)
    assert frames_of_run(run) == recorder.frames
    response = WatchFineTuningJobResponse.FromString(run)
    assert [frame_of_stored(e.SerializeToString()).sequence for e in response.events] == [
        frame.sequence for frame in recorder.frames
    ]


class CountingReads:
    """Counts the SQL queries."""

    def __init__(self, database: Database) -> None:
        self.statements: list[str] = []
        event.listen(database._reads.sync_engine, "before_cursor_execute", self._seen)

    def _seen(self, _: object, __: object, statement: str, *___: object) -> None:
        self.statements.append(statement)

    @property
    def pages(self) -> int:
        return sum("FROM events" in statement for statement in self.statements)


async def test_concurrent_watchers_share_one_read_of_the_history(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    """A hundred browsers that reconnect after a restart must not read the same history a hundred times."""
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 1200)
    await cancel(live, job_id, worker)
    reads = CountingReads(live.database)
    watchers = [Watcher(fanout, job_id) for _ in range(20)]
    seen = [await watcher.sequences_at_end() for watcher in watchers]
    assert all(sequences == list(range(1, len(seen[0]) + 1)) for sequences in seen)
    assert reads.pages <= 2 * (len(seen[0]) // 500 + 1), f"{reads.pages} pages were read for 20 watchers"


async def test_rare_event_kind_is_found_in_long_history_with_few_reads(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 2000)
    await worker.report(Eval(step=2000, eval_loss=1.0))
    await cancel(live, job_id, worker)
    reads = CountingReads(live.database)
    watcher = Watcher(fanout, job_id, kinds=("eval",))
    assert len(await watcher.sequences_at_end()) == 1
    assert reads.pages == 1


async def test_filtered_watch_gets_no_empty_response_per_skipped_event(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    """Its cursor advances with heartbeats and with matching events."""
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 1)
    stream = fanout.watch(FINE_TUNING_JOB, job_id, "default", 0, ("eval",), 0, heartbeat_seconds=600)
    async with asyncio.timeout(10):
        assert not WatchFineTuningJobResponse.FromString(await anext(stream)).events
    answer = asyncio.ensure_future(anext(stream))
    for step in range(2, 30):
        await worker.report(log_at(step))
    await worker.report(Eval(step=30, eval_loss=1.0))
    async with asyncio.timeout(10):
        response = WatchFineTuningJobResponse.FromString(await answer)
    assert [event.WhichOneof("payload") for event in response.events] == ["eval"]
    await stream.aclose()


async def test_watch_of_deleted_job_ends_with_not_found(live: Ledger, fanout: Fanout, recorder: Recorder) -> None:
    job_id, _ = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 3)
    watcher = Watcher(fanout, job_id)
    await watcher.wait_for_sequence(4)
    async with live.database.write() as session:
        for table in (Attempt, WorkEvent, Metric):
            await session.exec(delete(table).where(col(table.work_id) == job_id))
        await session.exec(delete(Work).where(col(Work.id) == job_id))
    with pytest.raises(NotFound):
        await watcher.sequences_at_end()


async def test_slow_watcher_continues_from_sql_when_ring_has_overwritten_its_position(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    """The ring holds one megabyte per job; a slow watcher still misses nothing."""
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 1)
    slow = fanout.watch(FINE_TUNING_JOB, job_id, "default", 0, (), 0, heartbeat_seconds=600)
    seen = [e.sequence for e in WatchFineTuningJobResponse.FromString(await anext(slow)).events]
    quick = Watcher(fanout, job_id, after=seen[-1])
    for batch in range(60):
        await worker.report(*(Warning(reason="LONG", message="x" * 10_000) for _ in range(3)))
        await quick.wait_for_sequence(seen[-1] + 3 * (batch + 1))
    ring = fanout._rings[job_id]
    assert ring.bytes <= 1 << 20
    assert ring.page(seen[-1], EVERYTHING) is None
    await cancel(live, job_id, worker)
    async with asyncio.timeout(10):
        async for data in slow:
            assert len(data) <= (256 << 10) + (64 << 10)
            seen += [e.sequence for e in WatchFineTuningJobResponse.FromString(data).events]
    assert seen == list(range(1, len(seen) + 1))
    assert await quick.sequences_at_end() == seen[-len(quick.sequences) :]


async def test_frames_published_out_of_order_are_neither_lost_nor_repeated(
    live: Ledger, fanout: Fanout, recorder: Recorder
) -> None:
    """Two decisions of one job may be published in another order than they were committed."""
    job_id, worker = await trained(live, recorder, WorkerRequests(live, NoTrainers()), 3)
    watcher = Watcher(fanout, job_id)
    await watcher.wait_for_sequence(4)
    held: list[list[Frame]] = []
    publish = fanout.publish

    async def hold(job: str, frames: list[Frame]) -> None:
        held.append(frames)

    live._publish = hold
    await worker.report(log_at(4), log_at(5))
    await worker.report(log_at(6), log_at(7))
    live._publish = publish
    for frames in reversed(held):
        await publish(job_id, frames)
    await cancel(live, job_id, worker)
    sequences = await watcher.sequences_at_end()
    assert sequences == list(range(1, len(sequences) + 1))
