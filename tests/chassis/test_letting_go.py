"""Pause, cancel and drain at unusual moments, and suspended or killed supervisors."""

import asyncio
import signal
from pathlib import Path

import psutil
import pytest

from chassis.bus import subjects
from chassis.bus.event_bus import Bus
from finetuneflow.v1 import work_pb2
from tests.chassis.conftest import StartSupervisor, StartWorker
from tests.chassis.peers import (
    ITEM,
    ChildStage,
    Gateway,
    arm,
    claim_record,
    kind,
    spools,
    wait_for_exit,
    wait_until_cleaned_up,
    wait_until_idle,
)
from tests.servers.nats import NatsServer


@pytest.mark.parametrize("wish", ["drain", "pause", "cancel"])
async def test_cancelled_preparation_ends_at_once_and_its_thread_stops_writing(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path, wish: str
) -> None:
    """A download of an hour would delay the drain, and write where another attempt may read."""
    gateway.do = "fetch"
    stage = ChildStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    await stage.fetched.wait()
    if wish == "drain":
        await worker.drain()
    else:
        gateway.directive = work_pb2.DIRECTIVE_PAUSE if wish == "pause" else work_pb2.DIRECTIVE_CANCEL
    reason = {"drain": "DRAINED", "pause": "PAUSED", "cancel": "CANCELLED"}[wish]
    assert (await gateway.wait_for_ending()).stage_released.reason == reason
    await wait_until_idle(worker)
    stage.go_on.set()
    async with asyncio.timeout(10):
        while not stage.written:  # noqa: ASYNC110 - set by a thread
            await asyncio.sleep(0.01)
    assert stage.written == ["given up"]
    await wait_until_cleaned_up(tmp_path)


async def test_preparation_without_progress_fails_as_stalled_with_its_phase(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """A hub that hangs would occupy a slot for ever."""
    gateway.do = "fetch"
    stage = ChildStage()
    await start_worker(stage, preparation_stall_seconds=0.5)
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason == "STALLED"
    assert "fetching_model" in failure.message
    stage.go_on.set()


async def test_download_progress_is_reported(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    """Fetching gigabytes takes minutes in which nothing else happens."""
    gateway.do = "fetch"
    stage = ChildStage()
    await start_worker(stage, preparation_progress_seconds=0.0)
    await bus.publish_work("trainer", "default", ITEM)
    stage.go_on.set()
    assert (await gateway.wait_for_ending()).HasField("stage_completed")
    phases = [event.phase for event in gateway.events if event.phase.name == "fetching_model"]
    assert [(phase.detail, phase.HasField("fraction"), phase.fraction) for phase in phases] == [
        ("org/model", False, 0.0),
        ("org/model", True, 0.5),
    ]


async def test_state_change_reaches_worker_before_next_heartbeat(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    """Otherwise a user who cancels a job would wait a heartbeat longer for the GPU to become free."""
    gateway.do = "wait"
    await start_worker(heartbeat_seconds=3600.0)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    reports = gateway.reports
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    await bus.publish(subjects.event("ftjob_another", "state_changed"), b"")
    await bus.publish(subjects.event("ftjob_a", "state_changed"), b"")
    assert (await gateway.wait_for_ending()).stage_released.reason == "CANCELLED"
    assert gateway.reports > reports


async def test_cancel_ends_all_processes_of_child(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Data loaders of a cancelled training would continue to use memory."""
    gateway.do = "grandchildren"
    worker = await start_worker(child_linger_seconds=0.2)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    child = psutil.Process(claim_record(tmp_path).child_pid)
    family = [child, *child.children(recursive=True)]
    assert len(family) == 3
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    assert (await gateway.wait_for_ending()).stage_released.reason == "CANCELLED"
    await wait_for_exit(*(each.pid for each in family))
    await wait_until_idle(worker)


async def test_drain_without_gateways_ends_and_next_process_reports_it(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Updating everything at once must cost no step and no attempt."""
    gateway.do = "wait"
    worker = await start_worker(drain_seconds=600, last_report_seconds=0.2)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid = claim_record(tmp_path).child_pid
    await gateway.close()
    await worker.stop()
    await wait_for_exit(pid)
    assert len([file for file in spools(tmp_path) if file.suffix == ".json"]) == 1
    await gateway.open()
    successor = await start_worker(node_id="trainer-2")
    assert (await gateway.wait_for_ending()).stage_released.reason == "DRAINED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)
    await wait_until_idle(successor)


async def test_drain_while_broker_is_down_loses_no_event(
    bus: Bus,
    gateway: Gateway,
    start_worker: StartWorker,
    nats_server: NatsServer,
) -> None:
    gateway.do = "wait"
    worker = await start_worker(drain_seconds=600, last_report_seconds=0.2)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    nats_server.stop()
    await worker.stop()
    nats_server.start()
    await start_worker(node_id="trainer-2")
    assert (await gateway.wait_for_ending()).stage_released.reason == "DRAINED"
    assert any(kind(event) == "checkpoint" for event in gateway.events)


async def test_drain_drops_a_checkpoint_that_cannot_be_stored(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The operator's machine ends in a minute; the job resumes from the previous checkpoint."""
    gateway.do = "wait"
    worker = await start_worker(drain_seconds=0.5)
    (tmp_path / "home/artifacts").mkdir(parents=True, exist_ok=True)
    (tmp_path / "home/artifacts/default").write_bytes(b"where a folder should be")
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    await worker.drain()
    assert gateway.events[-1].stage_released.reason == "DRAINED"
    assert not any(kind(event) == "checkpoint" for event in gateway.events)


async def test_second_drain_request_kills_at_once(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """Otherwise a user who presses Ctrl-C twice would still wait for a checkpoint."""
    gateway.do = "stubborn"
    worker = await start_worker(drain_seconds=600)
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid = claim_record(tmp_path).child_pid
    draining = [asyncio.create_task(worker.drain()) for _ in range(2)]
    await worker.drain_began.wait()
    worker.hurry()
    await asyncio.gather(*draining)
    await wait_for_exit(pid)
    assert gateway.events[-1].stage_released.reason == "DRAINED"


async def test_child_is_not_stalled_after_supervisor_was_suspended(
    bus: Bus, gateway: Gateway, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """A laptop that sleeps, or a virtual machine that is moved, would lose its trainings."""
    gateway.do = "wait"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    supervisor.send_signal(signal.SIGSTOP)
    # The limit of this supervisor is shorter: that time passes is what is tried.
    await asyncio.sleep(3.5)
    supervisor.send_signal(signal.SIGCONT)
    reports = gateway.reports
    await gateway.wait_until(lambda: gateway.reports >= reports + 2)
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.wait_for_ending()).stage_released.reason == "PAUSED"


async def test_suspended_worker_with_expired_claim_stops_and_changes_nothing(
    bus: Bus, gateway: Gateway, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """Its lease expired while it was suspended: another worker has the job."""
    gateway.do = "stubborn"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    pid, events = claim_record(tmp_path).child_pid, len(gateway.events)
    stored = tmp_path / "home/artifacts/default/jobs/ftjob_a/training/1/checkpoints/step-1"
    stored.mkdir(parents=True)
    (stored / "adapter_model.safetensors").write_bytes(b"accepted")
    supervisor.send_signal(signal.SIGSTOP)
    gateway.claim_id = "another"
    supervisor.send_signal(signal.SIGCONT)
    await wait_for_exit(pid)
    async with asyncio.timeout(20):
        while spools(tmp_path):  # noqa: ASYNC110 - another process deletes it
            await asyncio.sleep(0.02)
    assert len(gateway.events) == events
    assert (stored / "adapter_model.safetensors").read_bytes() == b"accepted"


async def test_child_without_stored_record_ends_with_its_supervisor(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """No later process would know of it."""
    gateway.do = "stubborn"
    arm(tmp_path / "failpoints", "child.started", "kill")
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await supervisor.wait()
    await start_worker(node_id="trainer-2")
    assert (await gateway.wait_for_ending()).stage_failed.reason == "KILLED"
    left = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])]
    await wait_for_exit(*(each.pid for each in left if "worker_child" in " ".join(each.info["cmdline"])))


async def test_next_supervisor_kills_processes_that_outlived_the_child(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """The kernel ends the child with its supervisor, but not what the child has started."""
    gateway.do = "grandchildren"
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_for_event("log")
    family = psutil.Process(claim_record(tmp_path).child_pid).children(recursive=True)
    assert len(family) == 2
    supervisor.kill()
    await supervisor.wait()
    await start_worker(node_id="trainer-2")
    await wait_for_exit(*(each.pid for each in family))
    assert (await gateway.wait_for_ending()).stage_failed.reason == "KILLED"


async def test_claim_of_supervisor_that_died_before_response_is_reported_by_next(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, start_supervisor: StartSupervisor, tmp_path: Path
) -> None:
    """The job would otherwise wait until its lease expires."""
    arm(tmp_path / "failpoints", "claim.granted", "kill")
    supervisor = await start_supervisor()
    await bus.publish_work("trainer", "default", ITEM)
    await supervisor.wait()
    assert gateway.claim_id
    await start_worker(node_id="trainer-2")
    assert (await gateway.wait_for_ending()).stage_failed.reason == "KILLED"
