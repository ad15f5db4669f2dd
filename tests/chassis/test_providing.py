"""Providing: the supervisor's work beside a child, such as the download of files that it asks for."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from chassis.bus.event_bus import Bus
from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from finetuneflow.v1 import fine_tuning_job_pb2, work_pb2
from tests.chassis.conftest import StartWorker
from tests.chassis.peers import ITEM, ChildStage, Gateway, ModelMissing, wait_until_idle


class ProvidingStage(ChildStage):
    """Raises `error` beside its child, or works on until it is ended."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.began, self.ended = asyncio.Event(), asyncio.Event()

    async def prepare(
        self, assignment: work_pb2.Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        command = await super().prepare(assignment, workdir, store, secrets)
        return replace(command, provide=self._provide)

    async def _provide(self) -> None:
        self.began.set()
        if self.error:
            raise self.error
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def test_refusal_beside_the_child_is_an_error_of_the_user(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    gateway.do = "wait"
    worker = await start_worker(ProvidingStage(ModelMissing()))
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert (failure.reason, failure.fault) == ("MODEL_NOT_FOUND", fine_tuning_job_pb2.FAULT_USER_ERROR)
    await wait_until_idle(worker)


async def test_input_that_is_gone_fails_as_in_a_preparation(
    bus: Bus, gateway: Gateway, start_worker: StartWorker
) -> None:
    gateway.do = "wait"
    await start_worker(ProvidingStage(ArtifactMissing("default/datasets/ds_1/rows.txt")))
    await bus.publish_work("trainer", "default", ITEM)
    failure = (await gateway.wait_for_ending()).stage_failed
    assert (failure.reason, failure.fault) == ("PREPARATION_FAILED", fine_tuning_job_pb2.FAULT_SYSTEM_ERROR)
    assert "ds_1" in failure.message


async def test_work_beside_the_child_ends_with_it(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    stage = ProvidingStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    assert (await gateway.wait_for_ending()).HasField("stage_completed")
    assert stage.ended.is_set()
    await wait_until_idle(worker)


async def test_work_beside_the_child_ends_with_a_pause(bus: Bus, gateway: Gateway, start_worker: StartWorker) -> None:
    gateway.do = "wait"
    stage = ProvidingStage()
    worker = await start_worker(stage)
    await bus.publish_work("trainer", "default", ITEM)
    await stage.began.wait()
    gateway.directive = work_pb2.DIRECTIVE_PAUSE
    assert (await gateway.wait_for_ending()).stage_released.reason == "PAUSED"
    assert stage.ended.is_set()
    await wait_until_idle(worker)
