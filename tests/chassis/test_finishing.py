"""Finishing: what a stage's supervisor does after its child has completed and its files are stored."""

import asyncio
from pathlib import Path

from chassis.bus.event_bus import Bus
from chassis.preparation import say
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2
from tests.chassis.conftest import StartWorker
from tests.chassis.peers import ITEM, ChildStage, Gateway, ModelMissing, kind, wait_until_idle


class FinishingStage(ChildStage):
    """Finishes as `how` says."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how = how

    async def finish(
        self, assignment: work_pb2.Assignment, event: event_pb2.Event, workdir: Path, store: ArtifactStore
    ) -> event_pb2.Event:
        say("making_model", "for a long time")
        if self.how == "refuse":
            raise ModelMissing
        if self.how == "wait":
            await asyncio.Event().wait()
        assert (workdir / "input.json").is_file()
        event.stage_completed.training.best_step = 7
        return event


def is_making(event: event_pb2.Event) -> bool:
    return kind(event) == "phase" and event.phase.name == "making_model"


async def test_supervisor_completes_the_result(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    """A watcher sees what the stage does meanwhile."""
    worker = await start_worker(FinishingStage())
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).stage_completed.training.best_step == 7
    assert any(map(is_making, gateway.events))
    await wait_until_idle(worker)


async def test_refusal_fails_the_attempt(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    await start_worker(FinishingStage("refuse"))
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert (failure.reason, failure.fault) == ("MODEL_NOT_FOUND", fine_tuning_job_pb2.FAULT_USER_ERROR)


async def test_cancel_does_not_wait_for_the_end(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    """The weights of a large model take minutes to make."""
    worker = await start_worker(FinishingStage("wait"))
    await bus.publish_work("trainer", "default", ITEM)
    await gateway.wait_until(lambda: any(map(is_making, gateway.events)))
    gateway.directive = work_pb2.DIRECTIVE_CANCEL
    assert (await gateway.wait_for_ending()).stage_released.reason == "CANCELLED"
    await wait_until_idle(worker)
