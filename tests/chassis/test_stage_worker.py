import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2
from tests.chassis.conftest import StartSupervisor, StartWorker
from tests.chassis.peers import (
    ITEM,
    ChildStage,
    Gateway,
    ModelMissing,
    claim_record,
    kind,
    spools,
    wait_for_exit,
    wait_until_cleaned_up,
    wait_until_idle,
)
from tests.servers.nats import NatsServer


async def test_events_arrive_once_in_order_after_their_files_are_stored(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The whole history of an attempt; a reported checkpoint can be fetched."""
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    ending = await gateway.wait_for_ending()
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
    await wait_until_idle(worker)
    assert spools(tmp_path) == []
    await wait_until_cleaned_up(tmp_path)


@pytest.mark.parametrize("do", ["", "no_model", "bad_data", "exit", "wait", "fetch"])
async def test_what_a_child_needs_is_held_until_it_has_ended(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str
) -> None:
    """Its model could otherwise be deleted while it reads it; and one that is held for ever cannot make room."""
    gateway.do = do
    stage = ChildStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    if do == "wait":
        await gateway.wait_for_event("log")
    if do == "fetch":
        await stage.fetched.wait()
    if do in ("wait", "fetch"):
        assert stage.held == ["held"]
        await worker.drain()
    await gateway.wait_for_ending()
    await wait_until_idle(worker)
    stage.go_on.set()
    assert stage.held == ["held", "released"]


async def test_worker_runs_the_attempt_that_the_gateway_names_instead(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The gateway knows whose turn it is; the first one that it names has been taken by another worker meanwhile."""
    named = [work_pb2.WorkItem(job_id=job, stage=ITEM.stage, attempt=1) for job in ("ftjob_taken", "ftjob_next")]
    gateway.instead = named
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_ending()
    assert {event.job_id for event in gateway.events} == {"ftjob_next"}
    await wait_until_idle(worker)
    assert spools(tmp_path) == []


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
async def test_failure_has_fault_and_last_log_lines(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str, fault: int, reason: str, line: str
) -> None:
    """Without them the user could not find the cause."""
    gateway.do = do
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert (failure.fault, failure.reason) == (fault, reason)
    assert failure.message
    assert failure.advice
    if line:
        assert line in "\n".join(failure.last_lines)


async def test_killed_child_is_reported_with_its_last_log_lines(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    os.kill(claim_record(tmp_path).child_pid, signal.SIGKILL)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason in ("KILLED", "HOST_OUT_OF_MEMORY")
    assert list(failure.last_lines) == ["waiting for ever"]


async def test_child_that_its_own_limit_ends_is_a_user_error(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """As an error of the system it would be tried again, and hold a worker as long each time."""
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    os.kill(claim_record(tmp_path).child_pid, signal.SIGXCPU)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert (failure.fault, failure.reason) == (fine_tuning_job_pb2.FAULT_USER_ERROR, ModelMissing.reason)
    assert failure.advice


async def test_hanging_child_is_killed_as_stalled(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A training that hangs would occupy its slot for ever."""
    gateway.do = "wait"
    await start_worker(stall_seconds=2.5)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid = claim_record(tmp_path).child_pid
    os.kill(pid, signal.SIGSTOP)
    assert (await gateway.wait_for_ending()).stage_failed.reason == "STALLED"
    await wait_for_exit(pid)


@pytest.mark.parametrize("do", ["wait", "stubborn"])
async def test_cancel_ends_child_even_if_it_ignores_the_request(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path, do: str
) -> None:
    gateway.do = do
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid = claim_record(tmp_path).child_pid
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    assert (await gateway.wait_for_ending()).stage_released.reason == "CANCELLED"
    await wait_for_exit(pid)
    await wait_until_idle(worker)


@pytest.mark.parametrize("wish", ["cancel", "drain", "stop"])
async def test_requests_during_start_of_child_reach_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wish: str
) -> None:
    """Otherwise a cancelled job would train to its end, and a node could not be drained."""
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
        await gateway.wait_until(lambda: gateway.reports >= before + 2)
        return await connect(protocol, pipe)

    gateway.do = "wait"
    draining: list[asyncio.Task[None]] = []
    worker = await start_worker()
    before_start = {child.pid for child in psutil.Process().children()}
    monkeypatch.setattr(asyncio.get_running_loop(), "connect_read_pipe", slowly)
    await bus.publish_work("trainer", "default", ITEM)
    if wish == "stop":
        await gateway.wait_until(lambda: gateway.claim_id == "another")
    else:
        reason = {"cancel": "CANCELLED", "drain": "DRAINED"}[wish]
        assert (await gateway.wait_for_ending()).stage_released.reason == reason
    await asyncio.gather(*draining)
    await wait_until_idle(worker)
    assert started
    await wait_for_exit(*started)


async def test_pause_saves_checkpoint_before_releasing_the_claim(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.wait_for_ending()).stage_released.reason == "PAUSED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)


async def test_stop_kills_child_and_deletes_its_files(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A worker whose lease expired must not continue a job that another worker runs now."""
    gateway.do = "stubborn"
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid = claim_record(tmp_path).child_pid
    gateway.claim_id = "another"
    await wait_for_exit(pid)
    await wait_until_idle(worker)
    assert spools(tmp_path) == []
    assert kind(gateway.events[-1]) == "log"


@pytest.mark.parametrize("do", ["wait", "stubborn"])
async def test_drained_worker_releases_its_claim(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, do: str
) -> None:
    """Scaling in or updating must not count as a failed attempt."""
    gateway.do = do
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    await worker.drain()
    assert gateway.events[-1].stage_released.reason == "DRAINED"
    assert worker.runs() == []
    assert worker.node().draining


async def test_no_event_is_lost_while_no_gateway_answers(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    """A gateway may be restarted during a training."""
    gateway.do = "talk"
    worker = await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    await gateway.close()
    async with asyncio.timeout(30):
        while worker.runs()[0].spooled_events < 1000:  # noqa: ASYNC110 - grows in another process
            await asyncio.sleep(0.02)
    await gateway.open()
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    await gateway.wait_for_ending()
    steps = [event.log.step for event in gateway.events if kind(event) == "log"]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 1000
    assert [event.ordinal for event in gateway.events] == list(range(len(gateway.events)))


async def test_running_attempt_survives_loss_of_all_broker_data(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, nats_server: NatsServer
) -> None:
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    await asyncio.to_thread(nats_server.wipe)
    before = gateway.reports
    await gateway.wait_until(lambda: gateway.reports > before)
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.wait_for_ending()).stage_released.reason == "PAUSED"


async def test_child_of_killed_supervisor_ends_and_next_supervisor_reports_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """No orphan continues to train, and the job need not wait for its lease to expire."""
    gateway.do = "stubborn"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid = claim_record(tmp_path).child_pid
    supervisor.kill()
    await supervisor.wait()
    await wait_for_exit(pid)
    before = len(gateway.events)
    await start_worker(node_id="trainer-2")
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason == "KILLED"
    assert [event.ordinal for event in gateway.events] == list(range(before + 1))


async def test_work_folders_without_owner_are_deleted(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Otherwise the remains of cancelled downloads would fill the disk."""
    gateway.do = "wait"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    left = tmp_path / "home/trainer/work/nobodys/model"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    await start_worker(node_id="trainer-2")
    assert list((tmp_path / "home/trainer/work").iterdir()) == [claim_record(tmp_path).workdir]


async def test_child_environment_has_no_secrets_and_hub_is_offline(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It processes data of the job's owner."""
    monkeypatch.setenv("FTF_NATS_PASSWORD", "hunter2")
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    gateway.do = "environment"
    await start_worker()
    await bus.publish_work("trainer", "default", ITEM)
    printed = "\n".join((await gateway.wait_for_ending()).stage_failed.last_lines)
    assert "hunter2" not in printed
    assert '"HF_HUB_OFFLINE": "1"' in printed


async def test_secret_reaches_the_preparation_and_nothing_else(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A file of it would outlive the attempt, on every node that ran one."""
    value = "hf_CanaryOfTheWorker"
    gateway.do, gateway.secrets = "wait", {"hub": SecretStr(value)}
    stage = ChildStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    assert stage.secrets["hub"].get_secret_value() == value
    (run,) = worker.runs()
    assert run.job_id == ITEM.job_id
    files = [file for file in (tmp_path / "home").rglob("*") if file.is_file()]
    assert any(file.suffix == ".json" for file in files), "the claim's record and the child's input are there"
    assert [file for file in files if value.encode() in file.read_bytes()] == []
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    assert len(processes) > 1
    for process in processes:
        assert value not in str(process.cmdline()) and value not in str(process.environ())
    assert all(value.encode() not in event.SerializeToString() for event in gateway.events)


async def test_claim_with_lost_response_is_run_by_the_same_worker(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """Another worker would be refused and drop the item; the job would wait until the lease expires."""
    gateway.lost_responses = 3
    await start_worker()
    await start_worker(node_id="trainer-2")
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).HasField("stage_completed")
    assert gateway.lost_responses == 0


async def test_an_attempt_that_two_workers_pull_runs_once(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    gateway.do = "wait"
    first = await start_worker()
    second = await start_worker(node_id="trainer-2")
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    await bus.publish_work("trainer", "default", ITEM)
    reports = gateway.reports
    await gateway.wait_until(lambda: gateway.reports >= reports + 2)
    assert len(first.runs()) + len(second.runs()) == 1


async def test_resource_usage_of_job_is_reported(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    """Users plan the memory of the next job by the usage of this one."""
    gateway.do = "wait"
    await start_worker(usage_sample_seconds=0.02, usage_report_seconds=0.1)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    await gateway.wait_until(lambda: sum(kind(event) == "resource_usage" for event in gateway.events) >= 2)
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    await gateway.wait_for_ending()
    usages = [event for event in gateway.events if kind(event) == "resource_usage"]
    assert {event.severity for event in usages} == {event_pb2.SEVERITY_DEBUG}
    peaks = [event.resource_usage.peak_memory_bytes for event in usages]
    assert peaks == sorted(peaks)
    assert peaks[0] > 5_000_000
    assert all(0 < event.resource_usage.memory_bytes <= event.resource_usage.peak_memory_bytes for event in usages)
    assert all(0 <= event.resource_usage.cpu_cores < 100 for event in usages)
    # The devices that this child was given are not there.
    assert not any(event.resource_usage.gpus for event in usages)
