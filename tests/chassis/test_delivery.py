"""Deliveries: what a stage sends elsewhere after its child has completed, before the attempt ends."""

import hashlib
import os
import signal
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil
from pydantic import SecretStr

from chassis.attempt.stage import Delivery
from chassis.bus.event_bus import Bus
from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore, Stored
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2
from tests.chassis.conftest import StartWorker
from tests.chassis.peers import ITEM, ChildStage, Gateway, claim_record, kind, wait_for_exit, wait_until_idle

SCRIPT = Path(__file__).with_name("delivery_child.py")
SECRET = "hf_OfThisDelivery"


class DeliveringStage(ChildStage):
    """Delivers what its child has stored, as `how` says; None: nothing."""

    def __init__(self, how: str | None = "") -> None:
        super().__init__()
        self.how = how
        self.stored: Mapping[str, Stored] = {}
        self.given: Mapping[str, SecretStr] = {}

    def secrets_of_delivery(self, assignment: work_pb2.Assignment) -> Collection[str]:
        return ["write"]

    def delivery(
        self,
        assignment: work_pb2.Assignment,
        completed: event_pb2.StageCompleted,
        stored: Mapping[str, Stored],
        command: ChildCommand,
        workdir: Path,
        secrets: Mapping[str, SecretStr],
    ) -> Delivery | None:
        self.stored, self.given = dict(stored), secrets
        if self.how is None:
            return None
        (workdir / "delivery").write_text(self.how)
        return Delivery([sys.executable, str(SCRIPT), str(workdir / "delivery")], {}, secrets["write"])


def files_with_secret(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]


async def test_result_of_a_delivery_is_added_to_that_of_the_child(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A push ends before the attempt does, has what was stored and its own secret, and no other."""
    gateway.secrets = {"write": SecretStr(SECRET), "read": SecretStr("hf_OfDownloads")}
    stage = DeliveringStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    ending = await gateway.wait_for_ending()
    result = ending.stage_completed.training
    assert (result.final_train_loss, result.total_steps) == (0.5, 100)
    assert set(stage.secrets) == {"write", "read"} and set(stage.given) == {"write"}
    (report,) = [event.artifact for event in gateway.events if kind(event) == "artifact"]
    assert stage.stored["report.md"] == Stored(report.path, report.sha256, report.size_bytes)
    (phase,) = [event.phase for event in gateway.events if kind(event) == "phase" and event.phase.name == "pushing"]
    assert phase.detail == hashlib.sha256(SECRET.encode()).hexdigest()
    await wait_until_idle(worker)


async def test_stage_with_nothing_to_deliver_ends_with_its_child(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    await start_worker(DeliveringStage(None))
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).stage_completed.training.total_steps == 100


async def test_refused_delivery_fails_the_attempt_and_keeps_its_files(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """The package of hours of work must not be lost because a token may not write."""
    gateway.secrets = {"write": SecretStr(SECRET)}
    await start_worker(DeliveringStage("forbidden"))
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert (failure.reason, failure.fault) == ("HUB_PUSH_FORBIDDEN", fine_tuning_job_pb2.FAULT_USER_ERROR)
    (report,) = [event.artifact for event in gateway.events if kind(event) == "artifact"]
    store = ArtifactStore((tmp_path / "home/artifacts").as_uri())
    store.get_file(f"default/{report.path}", tmp_path / "report.md", report.sha256)


async def test_cancel_and_kill_end_a_delivery(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    """A push of hours could otherwise not be stopped; and its secret is in no argument, environment or file."""
    gateway.secrets = {"write": SecretStr(SECRET)}
    worker = await start_worker(DeliveringStage("wait"))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_until(
        lambda: any(kind(event) == "phase" and event.phase.name == "pushing" for event in gateway.events)
    )
    pid = claim_record(tmp_path).child_pid
    process = psutil.Process(pid)
    assert str(SCRIPT) in process.cmdline()
    assert not any(SECRET in text for text in (*process.cmdline(), *process.environ().values()))
    assert files_with_secret(tmp_path) == []
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    assert (await gateway.wait_for_ending()).stage_released.reason == "CANCELLED"
    await wait_for_exit(pid)
    await wait_until_idle(worker)


async def test_killed_delivery_is_a_failure_that_is_retried(
    bus: Bus, gateway: Gateway, start_worker: StartWorker, tmp_path: Path
) -> None:
    gateway.secrets = {"write": SecretStr(SECRET)}
    await start_worker(DeliveringStage("wait"))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_until(
        lambda: any(kind(event) == "phase" and event.phase.name == "pushing" for event in gateway.events)
    )
    os.kill(claim_record(tmp_path).child_pid, signal.SIGKILL)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert failure.reason in ("KILLED", "HOST_OUT_OF_MEMORY")
    assert failure.fault == fine_tuning_job_pb2.FAULT_SYSTEM_ERROR
