import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2
from tests.chassis.conftest import StartSupervisor, StartWorker
from tests.chassis.peers import ITEM, Gateway, cleared, gone, idle, kind, record, spools
from tests.servers.nats import NatsServer


async def test_every_event_arrives_once_in_order_with_its_files_stored(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The whole history of an attempt; a checkpoint that is reported can be fetched."""
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    ending = await gateway.ending()
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))
    assert [event.log.step for event in gateway.events if kind(event) == "log"] == list(range(1, 101))
    assert {event.source for event in gateway.events} == {"trainer-1"}
    assert {(event.job_id, event.attempt) for event in gateway.events} == {("ftjob_a", 1)}
    (saved,) = [event.checkpoint for event in gateway.events if kind(event) == "checkpoint"]
    assert saved.path == "jobs/ftjob_a/training/1/checkpoints/step-100"
    result = ending.stage_completed.training
    assert (result.best_checkpoint_path, result.best_checkpoint_manifest_sha256) == (saved.path, saved.manifest_sha256)
    store = ArtifactStore((tmp_path / "home/artifacts").as_uri())
    store.get_folder(f"default/{saved.path}", tmp_path / "fetched", saved.manifest_sha256)
    assert (tmp_path / "fetched/adapter_model.safetensors").stat().st_size == saved.size_bytes == 7000
    (report,) = [event.artifact for event in gateway.events if kind(event) == "artifact"]
    assert report.media_type == "text/markdown"
    await idle(worker)
    assert spools(tmp_path) == []
    await cleared(tmp_path)


@pytest.mark.parametrize(
    ("do", "fault", "reason", "line"),
    [
        ("bad_data", fine_tuning_job_pb2.FAULT_USER_ERROR, "BAD_DATA", ""),
        ("no_model", fine_tuning_job_pb2.FAULT_USER_ERROR, "MODEL_NOT_FOUND", ""),
        ("crash", fine_tuning_job_pb2.FAULT_SYSTEM_ERROR, "CRASHED", "RuntimeError: a defect of the recipe"),
        ("exit", fine_tuning_job_pb2.FAULT_SYSTEM_ERROR, "CRASHED", "about to leave"),
        ("huge", fine_tuning_job_pb2.FAULT_SYSTEM_ERROR, "EVENT_TOO_LARGE", ""),
    ],
)
async def test_a_failure_says_whose_fault_it_is_and_shows_the_last_lines(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str, fault: int, reason: str, line: str
) -> None:
    """Without it a failed job is a riddle."""
    gateway.do = do
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.ending()).stage_failed
    assert (failure.fault, failure.reason) == (fault, reason)
    assert failure.message
    assert failure.advice
    if line:
        assert line in "\n".join(failure.last_lines)


async def test_a_killed_child_is_reported_with_what_it_said_last(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    os.kill(record(tmp_path).child_pid, signal.SIGKILL)
    failure = (await gateway.ending()).stage_failed
    assert failure.reason in ("KILLED", "HOST_OUT_OF_MEMORY")
    assert list(failure.last_lines) == ["waiting for ever"]


async def test_a_child_that_hangs_is_killed_as_stalled(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A frozen training would hold its slot for ever."""
    gateway.do = "wait"
    await start_worker(stall_seconds=2.5)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid = record(tmp_path).child_pid
    os.kill(pid, signal.SIGSTOP)
    assert (await gateway.ending()).stage_failed.reason == "STALLED"
    await gone(pid)


@pytest.mark.parametrize("do", ["wait", "stubborn"])
async def test_cancel_ends_a_child_even_one_that_does_not_listen(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path, do: str
) -> None:
    gateway.do = do
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid = record(tmp_path).child_pid
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    assert (await gateway.ending()).stage_released.reason == "CANCELLED"
    await gone(pid)
    await idle(worker)


@pytest.mark.parametrize("wish", ["cancel", "drain", "stop"])
async def test_what_comes_while_a_child_is_being_started_reaches_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    """A job that was cancelled would train to its end, and a node could not be drained."""
    started: list[int] = []
    connect = asyncio.get_running_loop().connect_read_pipe

    async def slowly(protocol: Callable[[], asyncio.Protocol], pipe: Any) -> Any:
        started.extend({child.pid for child in psutil.Process().children()} - before_start)
        if wish == "drain":
            draining.append(asyncio.create_task(worker.drain()))
        elif wish == "cancel":
            gateway.directive = work_pb2.DIRECTIVE_CANCEL
        else:
            gateway.claim_id = "another"
        before = gateway.reports
        await gateway.until(lambda: gateway.reports >= before + 2)
        return await connect(protocol, pipe)

    gateway.do = "wait"
    draining: list[asyncio.Task[None]] = []
    worker = await start_worker()
    before_start = {child.pid for child in psutil.Process().children()}
    monkeypatch.setattr(asyncio.get_running_loop(), "connect_read_pipe", slowly)
    await bus.publish_work("trainer", "default", ITEM)
    if wish == "stop":
        await gateway.until(lambda: gateway.claim_id == "another")
    else:
        reason = {"cancel": "CANCELLED", "drain": "DRAINED"}[wish]
        assert (await gateway.ending()).stage_released.reason == reason
    await asyncio.gather(*draining)
    await idle(worker)
    assert started
    await gone(*started)


async def test_pause_saves_a_checkpoint_before_it_lets_go(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.ending()).stage_released.reason == "PAUSED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)


async def test_stop_kills_the_child_and_leaves_nothing(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker whose lease expired must not go on with a job that others run now."""
    gateway.do = "stubborn"
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid = record(tmp_path).child_pid
    gateway.claim_id = "another"
    await gone(pid)
    await idle(worker)
    assert spools(tmp_path) == []
    assert kind(gateway.events[-1]) == "log"


@pytest.mark.parametrize("do", ["wait", "stubborn"])
async def test_a_drained_worker_hands_its_work_back(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str
) -> None:
    """Scaling in or updating must not count as a failure of anybody's job."""
    gateway.do = do
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    await worker.drain()
    assert gateway.events[-1].stage_released.reason == "DRAINED"
    assert worker.runs() == []
    assert worker.node().draining


async def test_nothing_is_lost_while_no_gateway_answers(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    """A gateway may be restarted in the middle of a training."""
    gateway.do = "talk"
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    await gateway.close()
    async with asyncio.timeout(30):
        while worker.runs()[0].spooled_events < 1000:  # noqa: ASYNC110 - grows in another process
            await asyncio.sleep(0.02)
    await gateway.open()
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    await gateway.ending()
    steps = [event.log.step for event in gateway.events if kind(event) == "log"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 1000
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))


async def test_a_running_attempt_survives_a_broker_that_loses_everything(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, nats_server: NatsServer
) -> None:
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    await asyncio.to_thread(nats_server.wipe)
    before = gateway.reports
    await gateway.until(lambda: gateway.reports > before)
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.ending()).stage_released.reason == "PAUSED"


async def test_a_killed_supervisor_takes_its_child_along_and_its_successor_reports_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """No orphan trains on, and the job does not have to wait for its lease to run out."""
    gateway.do = "stubborn"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    pid = record(tmp_path).child_pid
    supervisor.kill()
    await supervisor.wait()
    await gone(pid)
    before = len(gateway.events)
    await start_worker(node_id="trainer-2")
    failure = (await gateway.ending()).stage_failed
    assert failure.reason == "KILLED"
    assert [event.ordinal for event in gateway.events] == list(range(before + 1))


async def test_work_folders_of_nobody_are_swept_and_those_of_others_are_not(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Otherwise the remains of cancelled downloads would fill the disk."""
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    left = tmp_path / "home/trainer/work/nobodys/model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    await start_worker(node_id="trainer-2")
    assert list((tmp_path / "home/trainer/work").iterdir()) == [record(tmp_path).workdir]


async def test_a_child_sees_no_secret_and_no_hub(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data from a job's owner runs through it."""
    monkeypatch.setenv("FTF_NATS_PASSWORD", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    gateway.do = "environment"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    printed = "\n".join((await gateway.ending()).stage_failed.last_lines)
    assert "hunter2" not in printed
    assert '"HF_HUB_OFFLINE": "1"' in printed


async def test_a_claim_whose_answer_was_lost_is_run_by_who_got_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """Another worker would be told that it is taken and drop the item; nobody would run it until its lease ends."""
    gateway.lost_answers = 3
    await start_worker()
    await start_worker(node_id="trainer-2")
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.ending()).HasField("stage_completed")
    assert gateway.lost_answers == 0


async def test_an_attempt_that_two_workers_pull_runs_once(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    gateway.do = "wait"
    first = await start_worker()
    second = await start_worker(node_id="trainer-2")
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    await bus.publish_work("trainer", "default", ITEM)
    reports = gateway.reports
    await gateway.until(lambda: gateway.reports >= reports + 2)
    assert len(first.runs()) + len(second.runs()) == 1


async def test_watchers_see_what_a_job_takes_of_its_machine(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """Otherwise a user could not plan the next job's memory by the usage of this one."""
    gateway.do = "wait"
    await start_worker(usage_sample_seconds=0.02, usage_report_seconds=0.1)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.seen("log")
    await gateway.until(lambda: sum(kind(event) == "resource_usage" for event in gateway.events) >= 2)
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    await gateway.ending()
    usages = [event for event in gateway.events if kind(event) == "resource_usage"]
    assert {event.severity for event in usages} == {event_pb2.SEVERITY_DEBUG}
    peaks = [event.resource_usage.peak_memory_bytes for event in usages]
    assert peaks == sorted(peaks)
    assert peaks[0] > 5_000_000
    assert all(0 < event.resource_usage.memory_bytes <= event.resource_usage.peak_memory_bytes for event in usages)
    assert all(0 <= event.resource_usage.cpu_cores < 100 for event in usages)
    # The devices that this child was given are not there.
    assert not any(event.resource_usage.gpus for event in usages)
