"""Simulated trainings for the benchmarks: `python -m benchmarks.training pump|run|take|naive …`.

`pump SIZE` reports SIZE events at a time, as fast as they are accepted, by the protocol of claims and reports.
`run RATE SLOTS` is the supervisor of every service (chassis.attempt.stage_worker) with a child that emits RATE events a
second through the real pipe, spool and reporter. `take` claims attempts and prints the time of each. `naive WINDOW`
publishes single events to the naive gateway, with at most WINDOW undelivered. All run until the end of stdin.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import uuid
from pathlib import Path

import nats

from chassis.attempt.stage_worker import StageWorker
from chassis.attempt.time_limits import TimeLimits
from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from chassis.child.child_process import ChildCommand
from chassis.settings import WorkerSettings
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.event_pb2 import Event, Log, StageCompleted
from finetuneflow.v1.fine_tuning_job_pb2 import Stage
from finetuneflow.v1.stage_result_pb2 import PreflightResult
from finetuneflow.v1.work_pb2 import (
    Assignment,
    ClaimRequest,
    ClaimResponse,
    ReportRequest,
    ReportResponse,
)

_NODE = "trainer-benchmark"


def log_at(step: int) -> Log:
    """Returns a log event like that of a real training."""
    return Log(
        step=step,
        total_steps=1_000_000,
        epoch=step / 1000,
        loss=2.345678 / (1 + step % 97),
        learning_rate=1.9e-4,
        grad_norm=0.7654321,
        tokens_per_second=1234.5,
        num_tokens=step * 512,
        eta_seconds=12.5,
        elapsed_seconds=step * 0.25,
    )


def event_at(job_id: str, step: int) -> Event:
    event = Event(
        job_id=job_id, stage=Stage.STAGE_TRAINING, attempt=1, ordinal=step, source=_NODE, severity="SEVERITY_INFO"
    )
    event.log.CopyFrom(log_at(step))
    event.event_time.FromNanoseconds(time.time_ns())
    return event


async def connect(name: str) -> Bus:
    return await Bus.connect(
        os.environ["FTF_NATS_URL"], os.environ["FTF_NATS_USER"], os.environ["FTF_NATS_PASSWORD"], name
    )


async def claimed(bus: Bus, service: str, seconds: float = 60) -> Assignment:
    """Claims the next attempt of a service."""
    message = await bus.work(service, "default").next(seconds)
    if message is None:
        raise TimeoutError(f"no work for {service}")
    item = message.item
    request = ClaimRequest(
        job_id=item.job_id, stage=item.stage, attempt=item.attempt, claim_id=uuid.uuid4().hex, node_id=_NODE
    )
    answer = await bus.request(subjects.claim(service, "default"), request, ClaimResponse, 10)
    await message.ack()
    if not answer.HasField("assignment"):
        raise RuntimeError(f"the claim was refused: {answer.refused.reason}")
    return answer.assignment


async def report(bus: Bus, given: Assignment, first: int, events: list[Event]) -> ReportResponse:
    for ordinal, event in enumerate(events, first):
        event.job_id, event.stage, event.attempt = given.job_id, given.stage, given.attempt
        event.ordinal, event.source = ordinal, _NODE
    request = ReportRequest(
        job_id=given.job_id,
        claim_id=given.claim_id,
        first_ordinal=first,
        events=[event.SerializeToString() for event in events],
    )
    return await bus.request(subjects.report(given.job_id), request, ReportResponse, 30)


async def pass_preflight(bus: Bus) -> None:
    given = await claimed(bus, "probe")
    done = StageCompleted(preflight=PreflightResult(total_steps=1_000_000))
    await report(bus, given, 0, [Event(stage_completed=done)])


async def pump(size: int) -> None:
    bus = await connect("pump")
    await pass_preflight(bus)
    given = await claimed(bus, "trainer")
    ended = _end_of_stdin()
    _say({"job": given.job_id})
    step = 0
    template = [event_at(given.job_id, 0) for _ in range(size)]
    while not ended.done():
        for offset, event in enumerate(template):
            event.log.step = step + offset
        answer = await report(bus, given, step, template)
        step = answer.next_ordinal
    await bus.close()


async def take() -> None:
    """Claims every attempt for probes and prints the time."""
    bus = await connect("taker")
    _say({})
    while True:
        given = await claimed(bus, "probe", 600)
        _say({"job": given.job_id, "at": time.time_ns()})


class Emitting:
    """The stage of `run`."""

    service = "trainer"

    def __init__(self, rate: float) -> None:
        self._rate = rate

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: object
    ) -> ChildCommand:
        spec = workdir / "input.json"
        spec.write_text(json.dumps({"rate": self._rate}))
        return ChildCommand([sys.executable, "-m", "benchmarks.child", str(spec)], workdir / "out", _path())


def _path() -> dict[str, str]:
    # The child starts in its work folder.
    return {"PYTHONPATH": str(Path(__file__).parents[1])}


class _Settings(WorkerSettings):
    service = "trainer"


async def run(rate: float, slots: int) -> None:
    bus = await connect("trainer")
    for _ in range(slots):
        await pass_preflight(bus)
    settings = _Settings(slots=slots, cancel_grace_seconds=0.2, drain_seconds=1)
    worker = StageWorker(bus, ArtifactStore(settings.artifacts), Emitting(rate), settings, TimeLimits())
    await worker.start()
    _say({})
    await _end_of_stdin()
    await worker.stop()
    await bus.close()


async def naive(window: int) -> None:
    from benchmarks.servers import NAIVE_DELIVERED, NAIVE_SUBJECT

    client = await nats.connect(
        os.environ["FTF_NATS_URL"], user=os.environ["FTF_NATS_USER"], password=os.environ["FTF_NATS_PASSWORD"]
    )
    room = asyncio.Semaphore(window)

    async def delivered(message: object) -> None:
        room.release()

    await client.subscribe(NAIVE_DELIVERED, cb=delivered)
    ended = _end_of_stdin()
    _say({})
    step = 0
    while not ended.done():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(room.acquire(), 1)
            step += 1
            event = event_at("ftjob_" + "0" * 26, step)
            event.sequence = step
            await client.publish(NAIVE_SUBJECT, event.SerializeToString())
    await client.close()


def _end_of_stdin() -> asyncio.Future[str]:
    return asyncio.ensure_future(asyncio.to_thread(sys.stdin.readline))


def _say(what: object) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["pump", size]:
            asyncio.run(pump(int(size)))
        case ["run", rate, slots]:
            asyncio.run(run(float(rate), int(slots)))
        case ["take"]:
            asyncio.run(take())
        case ["naive", window]:
            asyncio.run(naive(int(window)))
        case other:
            sys.exit(f"unknown command: {' '.join(other)}")
