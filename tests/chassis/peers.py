"""What stands around a stage worker in these tests: a gateway that answers on the real bus, and a stage."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from chassis.artifacts import ArtifactStore
from chassis.bus import CLAIM_SUBJECT, Bus, Handlers, report_subject
from chassis.child import ChildCommand
from chassis.settings import WorkerSettings
from chassis.stage_worker import StageWorker
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

CHILD = Path(__file__).with_name("worker_child.py")
ITEM = work_pb2.WorkItem(job_id="ftjob_a", stage=fine_tuning_job_pb2.STAGE_TRAINING, attempt=1)


class Settings(WorkerSettings):
    service = "trainer"


class ChildStage:
    """Starts the child of these tests; `do` travels in the spec's display name."""

    service = "trainer"

    async def prepare(self, assignment: work_pb2.Assignment, workdir: Path, store: ArtifactStore) -> ChildCommand:
        do = assignment.spec.display_name
        if do == "no_model":
            raise ModelMissing
        spec = workdir / "spec.json"
        spec.write_text(json.dumps({"do": do, "out_dir": str(workdir / "out")}))
        return ChildCommand([sys.executable, str(CHILD), str(spec)], workdir / "out", {"OMP_NUM_THREADS": "1"})


class ModelMissing(Exception):
    reason = "MODEL_NOT_FOUND"
    message = "There is no such model."
    advice = "Choose another."
    violations = ()


class Gateway:
    """Grants every claim of an attempt once and accepts reports by their ordinals."""

    def __init__(self, bus: Bus, do: str = "") -> None:
        self.bus = bus
        self.do = do
        self.directive = work_pb2.DIRECTIVE_RUN
        self.events: list[event_pb2.Event] = []
        self.claim_id = ""
        self.reports = 0
        self.lost_answers = 0
        """So many of the next claims are granted, and the worker does not hear of it."""
        self._changed = asyncio.Condition()
        self._handlers: list[Handlers] = []

    async def open(self) -> None:
        self._handlers = [
            await self.bus.serve(CLAIM_SUBJECT, "gateways", self._claim),
            await self.bus.serve(report_subject("*"), "gateways", self._report),
        ]

    async def close(self) -> None:
        for handlers in self._handlers:
            await handlers.stop()

    async def until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Waits for something that a report brings."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def ending(self) -> event_pb2.Event:
        await self.until(lambda: bool(self.events) and kind(self.events[-1]).startswith("stage_"))
        return self.events[-1]

    async def seen(self, wanted: str) -> None:
        await self.until(lambda: any(kind(event) == wanted for event in self.events))

    async def _claim(self, data: bytes) -> bytes:
        request = work_pb2.ClaimRequest.FromString(data)
        if self.claim_id not in ("", request.claim_id):
            refused = work_pb2.ClaimRefused(reason="CLAIMED_BY_ANOTHER")
            return work_pb2.ClaimResponse(refused=refused).SerializeToString()
        self.claim_id = request.claim_id
        assignment = work_pb2.Assignment(
            job_id=request.job_id,
            tenant="default",
            stage=request.stage,
            attempt=request.attempt,
            claim_id=request.claim_id,
        )
        assignment.spec.display_name = self.do
        if self.lost_answers:
            self.lost_answers -= 1
            raise ConnectionError("the answer got lost")
        return work_pb2.ClaimResponse(assignment=assignment).SerializeToString()

    async def _report(self, data: bytes) -> bytes:
        report = work_pb2.ReportRequest.FromString(data)
        directive = self.directive
        if report.claim_id != self.claim_id:
            directive = work_pb2.DIRECTIVE_STOP
        elif report.first_ordinal <= len(self.events):
            for event in report.events[len(self.events) - report.first_ordinal :]:
                self.events.append(event_pb2.Event.FromString(event))
        async with self._changed:
            self.reports += 1
            self._changed.notify_all()
        return work_pb2.ReportResponse(next_ordinal=len(self.events), directive=directive).SerializeToString()


def kind(event: event_pb2.Event) -> str:
    return event.WhichOneof("payload") or ""


async def run_supervisor(home: str, url: str, user: str, password: str) -> None:
    bus = await Bus.connect(url, user, password, "supervisor")
    settings = Settings(home=Path(home), node_id="trainer-killed", cancel_grace_seconds=0.5)
    worker = StageWorker(bus, ArtifactStore(settings.artifacts), ChildStage(), settings)
    await worker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run_supervisor(*os.environ["SUPERVISOR"].split(" ")))
