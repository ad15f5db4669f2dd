"""The peers of a stage worker in these tests: a gateway that answers on the real bus, and a stage."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil
from pydantic import SecretStr

from chassis.attempt.spool import ClaimRecord
from chassis.attempt.stage_worker import StageWorker
from chassis.attempt.time_limits import TimeLimits
from chassis.bus import subjects
from chassis.bus.event_bus import Bus, Handlers
from chassis.child.child_process import ChildCommand
from chassis.child.spare import SpareCommand
from chassis.preparation import GivenUp, hold, progressed, say
from chassis.security.sealing import seal
from chassis.settings import WorkerSettings
from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

CHILD = Path(__file__).with_name("worker_child.py")
ITEM = work_pb2.WorkItem(job_id="ftjob_a", stage=fine_tuning_job_pb2.STAGE_TRAINING, attempt=1)


class Settings(WorkerSettings):
    service = "trainer"


class ChildStage:
    """Starts the child of these tests; `do` travels in the spec's display name."""

    service = "trainer"

    def __init__(self) -> None:
        self.go_on = threading.Event()
        """Until it is set, a preparation with `fetch` waits for its next byte."""
        self.fetched = asyncio.Event()
        self.written: list[str] = []
        self.secrets: Mapping[str, SecretStr] = {}
        self.held: list[str] = []
        """What became of the resource that each child needs."""

    async def prepare(
        self, assignment: work_pb2.Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        do = assignment.spec.display_name
        self.secrets = secrets
        hold(self._needed(workdir))
        if do == "no_model":
            raise ModelMissing
        if do == "no_room":
            raise OSError(errno.ENOSPC, "No space left on device")
        if do.startswith("fetch"):
            await asyncio.to_thread(self._fetch, workdir, asyncio.get_running_loop())
        spec = workdir / "input.json"
        spec.write_text(json.dumps({"do": do, "out_dir": str(workdir / "out")}))
        return ChildCommand(
            [sys.executable, str(CHILD), str(spec)],
            workdir / "out",
            env={"OMP_NUM_THREADS": "1"},
            late_env={"CUDA_VISIBLE_DEVICES": "7"},
            on_cpu="on_cpu" in do,
            cold="cold" in do,
            reads=[CHILD],
            refusals={-signal.SIGXCPU: ModelMissing()},
        )

    @contextlib.contextmanager
    def _needed(self, workdir: Path) -> Iterator[None]:
        self.held.append("held")
        yield
        running = [process for process in psutil.process_iter(["cmdline"]) if _is_child(process, workdir)]
        self.held.append("released too early" if running else "released")

    def _fetch(self, workdir: Path, loop: asyncio.AbstractEventLoop) -> None:
        say("fetching_model", "org/model", total_bytes=8)
        try:
            loop.call_soon_threadsafe(self.fetched.set)
            self.go_on.wait(60)
            progressed(4)
            (workdir / "model").write_bytes(b"late")
            self.written.append("model")
        except GivenUp:
            self.written.append("given up")
            raise


def _is_child(process: psutil.Process, workdir: Path) -> bool:
    # A process that has exited has no command line.
    return str(workdir / "input.json") in (process.info["cmdline"] or ())


class StageWithSpare(ChildStage):
    """Its children can wait for their spec."""

    def spare(self) -> SpareCommand:
        return SpareCommand([sys.executable, str(CHILD)], {"OMP_NUM_THREADS": "1"})


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
        self.secrets: dict[str, SecretStr] = {}
        """They are given, sealed, with every claim."""
        self.directive = work_pb2.DIRECTIVE_RUN
        self.events: list[event_pb2.Event] = []
        self.claim_id = ""
        self.reports = 0
        self.lost_responses = 0
        """Number of next claims that are granted without a response to the worker."""
        self.instead: list[work_pb2.WorkItem] = []
        """Attempts that claims with take_next are sent to, in order; the first of two is then somebody else's."""
        self._changed = asyncio.Condition()
        self._handlers: list[Handlers] = []

    async def open(self) -> None:
        self._handlers = [
            await self.bus.serve(subjects.claim("*", "*"), "gateways", self._claim),
            await self.bus.serve(subjects.report("*"), "gateways", self._report),
        ]

    async def close(self) -> None:
        for handlers in self._handlers:
            await handlers.stop()

    async def wait_until(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Waits for something that a report brings."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def wait_for_ending(self) -> event_pb2.Event:
        await self.wait_until(lambda: bool(self.events) and kind(self.events[-1]).startswith("stage_"))
        return self.events[-1]

    async def wait_for_event(self, wanted: str) -> None:
        await self.wait_until(lambda: any(kind(event) == wanted for event in self.events))

    async def _claim(self, _subject: str, data: bytes) -> bytes:
        request = work_pb2.ClaimRequest.FromString(data)
        if self.claim_id not in ("", request.claim_id):
            refused = work_pb2.ClaimRefused(reason="CLAIMED_BY_ANOTHER")
            return work_pb2.ClaimResponse(refused=refused).SerializeToString()
        if request.take_next and self.instead:
            return work_pb2.ClaimResponse(instead=self.instead[0]).SerializeToString()
        if len(self.instead) > 1:
            self.instead.pop(0)
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
        for name, value in self.secrets.items():
            assignment.sealed_secrets[name] = seal(value, request.public_key, request.claim_id, name)
        if self.lost_responses:
            self.lost_responses -= 1
            raise ConnectionError("the answer got lost")
        return work_pb2.ClaimResponse(assignment=assignment).SerializeToString()

    async def _report(self, _subject: str, data: bytes) -> bytes:
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


async def wait_for_exit(*pids: int) -> None:
    """Waits until no such process runs any more."""
    async with asyncio.timeout(20):
        for pid in pids:
            while _runs(pid):  # noqa: ASYNC110 - it sends no notification
                await asyncio.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


async def wait_until_idle(worker: StageWorker) -> None:
    async with asyncio.timeout(20):
        while worker.runs():  # noqa: ASYNC110 - it sends no notification
            await asyncio.sleep(0.02)


async def wait_until_cleaned_up(tmp_path: Path) -> None:
    """Waits until no attempt has a folder any more."""
    async with asyncio.timeout(20):
        while any((tmp_path / "home/trainer/work").glob("*")):  # noqa: ASYNC110 - it sends no notification
            await asyncio.sleep(0.02)


def spools(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "home/trainer/spool").glob("*"))


def claim_record(tmp_path: Path) -> ClaimRecord:
    (file,) = (tmp_path / "home/trainer/spool").glob("*.json")
    return ClaimRecord.model_validate_json(file.read_bytes())


def arm(folder: Path, name: str, action: str) -> None:
    """Has the first process that reaches the failpoint do so."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.new").write_text(action)
    (folder / f"{name}.new").rename(folder / name)


async def run_supervisor(home: str, url: str, user: str, password: str) -> None:
    bus = await Bus.connect(url, user, password, "supervisor")
    settings = Settings(home=Path(home), node_id="trainer-killed", cancel_grace_seconds=0.5, stall_seconds=2.5)
    worker = StageWorker(bus, ArtifactStore(settings.artifacts), StageWithSpare(), settings, TimeLimits())
    await worker.start()
    print("started", flush=True)  # noqa: T201
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run_supervisor(*os.environ["SUPERVISOR"].split(" ")))
