"""One claimed attempt: prepares, runs the child, turns whatever happens into events and one ending."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from google.protobuf.message import DecodeError, Message

from chassis.artifacts import ArtifactStore
from chassis.bus import Bus
from chassis.child import Child, ChildCommand
from chassis.events import ENDINGS, MAX_EVENT_BYTES, event_of
from chassis.failpoints import failpoint
from chassis.faults import CallerFault, SystemFault
from chassis.pipe import failure_of
from chassis.reporter import Reporter
from chassis.settings import WorkerSettings
from chassis.spare import Spare, SpareCommand
from chassis.spool import Spool
from chassis.uploads import KINDS, UploadFailed, Uploads
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

_log = logging.getLogger(__name__)

_EXIT_SECONDS = 10.0
"""How long a child may take to exit after it has said how it ended."""


class Stage(Protocol):
    """What one of the four services does with a work item."""

    service: str

    async def prepare(self, assignment: work_pb2.Assignment, workdir: Path, store: ArtifactStore) -> ChildCommand:
        """Brings what the child needs into `workdir`, which is empty. An exception with reason, message, advice and
        violations is the caller's to mend; any other is ours, its reason kept where it has one (SystemFault)."""
        ...


@runtime_checkable
class Finisher(Protocol):
    """A stage that has something to add to its child's StageCompleted, after the paths of uploads are filled in."""

    def finish(self, assignment: work_pb2.Assignment, event: event_pb2.Event) -> event_pb2.Event: ...


@runtime_checkable
class Sparing(Protocol):
    """A stage whose children take long to import what they need, and can do so before they have a spec."""

    def spare(self) -> SpareCommand:
        """How to start one that waits for its spec; what `prepare` asks for most of the time."""
        ...


@dataclass(frozen=True)
class Place:
    """Where attempts run: everything that is the same for all of a process."""

    bus: Bus
    store: ArtifactStore
    stage: Stage
    settings: WorkerSettings
    spare: Spare


def failed(reason: str, message: str, advice: str = "", lines: list[str] | None = None) -> event_pb2.StageFailed:
    """A failure that is ours."""
    fault = fine_tuning_job_pb2.FAULT_SYSTEM_ERROR
    return event_pb2.StageFailed(fault=fault, reason=reason, message=message, advice=advice, last_lines=lines)


class Attempt:
    """Runs from the claim until its last event is accepted."""

    def __init__(self, place: Place, assignment: work_pb2.Assignment, spool: Spool) -> None:
        self.assignment = assignment
        self.start_time = time.time()
        self._place = place
        self._spool = spool
        self._reporter = Reporter(place.bus, spool, self._hear)
        self._child: Child | None = None
        self._preparing: asyncio.Task[ChildCommand] | None = None
        self._release = ""
        """PAUSED, DRAINED or CANCELLED once the attempt is to be let go."""
        self._failure: event_pb2.StageFailed | None = None
        """Why the supervisor killed the child."""
        self._phase = ""
        self._ended = False
        """True once the child has said how it ended."""
        self._heard = 0.0

    @property
    def waiting_events(self) -> int:
        """Events that are not accepted yet."""
        return self._reporter.waiting_events

    async def run(self) -> None:
        """Returns once the attempt is over and nothing of it is left here. Cancelled, it kills the child and leaves
        the spool to the next process."""
        working = asyncio.create_task(self._work(), name=f"work-{self.assignment.job_id}")
        reporting = asyncio.create_task(self._reporter.run(), name=f"report-{self.assignment.job_id}")
        try:
            await asyncio.wait({working, reporting}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                # Raises when not even the ending could be kept. Without a heartbeat the lease expires.
                await working
            await reporting
            if self._reporter.stopped:
                _log.info("the claim is not current any more; stopping", extra=self._labels())
        finally:
            await _cancelled(reporting)
            await _cancelled(working)
            self._spool.close()
        self._spool.delete()
        await asyncio.to_thread(shutil.rmtree, self._spool.record.workdir, ignore_errors=True)

    def drain(self) -> None:
        """Asks the child to save and let go."""
        self._let_go("DRAINED")

    def abandon(self) -> None:
        """Kills a child that did not let go in time. The operator wanted it: it counts as released, not as failed."""
        self._let_go("DRAINED")
        if self._child:
            self._child.kill()

    def _hear(self, directive: work_pb2.Directive) -> None:
        if directive == work_pb2.DIRECTIVE_PAUSE:
            self._let_go("PAUSED")
        elif directive == work_pb2.DIRECTIVE_CANCEL:
            self._let_go("CANCELLED")

    def _let_go(self, reason: str) -> None:
        if self._release == "CANCELLED" or self._release == reason:
            return
        self._release = reason
        if self._child:
            self._tell(self._child)
        elif self._preparing:
            self._preparing.cancel()

    def _tell(self, child: Child) -> None:
        if self._release == "CANCELLED":
            child.control("cancel")
            asyncio.get_running_loop().call_later(self._place.settings.cancel_grace_seconds, child.kill)
        elif self._release:
            child.control("pause")

    async def _work(self) -> None:
        try:
            ending = await self._outcome()
        except OSError as error:
            _log.exception("an attempt failed on this machine", extra=self._labels())
            ending = failed("MACHINE_FAILED", f"The worker's machine failed: {error}", "See the worker's log.")
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            _log.exception("a defect of the supervisor", extra=self._labels())
            ending = failed("CRASHED", f"{type(error).__name__}: {error}"[:4096], "See the worker's log.")
        finally:
            if self._child:
                self._child.close()
        failpoint("attempt.ending")
        self._append(ending if isinstance(ending, event_pb2.Event) else event_of(ending))

    async def _outcome(self) -> event_pb2.Event | Message:
        workdir = self._spool.record.workdir
        workdir.mkdir(parents=True)
        self._preparing = asyncio.create_task(self._place.stage.prepare(self.assignment, workdir, self._place.store))
        try:
            command = await self._preparing
        except asyncio.CancelledError:
            if self._release and self._preparing.cancelled():
                return event_pb2.StageReleased(reason=self._release)
            raise
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            failure = failure_of(error)
            if not isinstance(error, CallerFault):
                _log.exception("preparing an attempt failed", extra=self._labels())
            if not isinstance(error, CallerFault | SystemFault):
                failure.reason, failure.advice = "PREPARATION_FAILED", "See the worker's log."
            return failure
        finally:
            self._preparing = None
        if self._release:
            return event_pb2.StageReleased(reason=self._release)
        command.out_dir.mkdir(parents=True, exist_ok=True)
        child = self._child = await self._place.spare.start(command, workdir)
        failpoint("child.started")
        self._spool.record.child_pid = child.pid
        self._spool.record.child_create_time = child.create_time
        self._spool.save_record()
        # What came while it was started has found nobody to tell.
        self._tell(child)
        return await self._follow(child, Uploads(self._place.store, self.assignment, command.out_dir))

    async def _follow(self, child: Child, uploads: Uploads) -> event_pb2.Event | Message:
        queue: asyncio.Queue[event_pb2.Event | None] = asyncio.Queue()
        uploading = asyncio.create_task(self._upload(child, uploads, queue))
        watching = asyncio.create_task(self._watch(child))
        try:
            ending = await self._read(child, queue)
            watching.cancel()
            status = await child.wait()
            if self._release == "CANCELLED":
                return event_pb2.StageReleased(reason="CANCELLED")
            await uploading
            if self._failure:
                self._failure.last_lines[:] = child.last_lines()
                return self._failure
            if ending is None:
                return self._unexplained_exit(child, status)
            return self._completed(ending, child, uploads)
        finally:
            await _cancelled(uploading)
            await _cancelled(watching)

    async def _read(self, child: Child, queue: asyncio.Queue[event_pb2.Event | None]) -> event_pb2.Event | None:
        ending: event_pb2.Event | None = None
        self._heard = time.monotonic()
        try:
            async with contextlib.aclosing(child.frames()) as frames:
                async for frame in frames:
                    self._heard = time.monotonic()
                    if not frame or ending:
                        continue
                    if len(frame) > MAX_EVENT_BYTES:
                        self._fail(child, "EVENT_TOO_LARGE", f"The worker wrote an event of {len(frame)} bytes.")
                        continue
                    event = event_pb2.Event.FromString(frame)
                    kind = event.WhichOneof("payload")
                    if kind in ENDINGS:
                        ending = event
                        self._ended = True
                        asyncio.get_running_loop().call_later(_EXIT_SECONDS, child.kill)
                    elif kind in KINDS:
                        queue.put_nowait(event)
                    else:
                        self._phase = event.phase.name if kind == "phase" else self._phase or "started"
                        self._append(event)
        except (ValueError, DecodeError) as error:
            self._fail(child, "CRASHED", f"The worker wrote what is no event: {error}")
        finally:
            queue.put_nowait(None)
        return ending

    async def _upload(self, child: Child, uploads: Uploads, queue: asyncio.Queue[event_pb2.Event | None]) -> None:
        while event := await queue.get():
            try:
                await uploads.upload(event)
            except UploadFailed as error:
                self._fail(child, "UPLOAD_FAILED", str(error))
                return
            self._append(event)

    async def _watch(self, child: Child) -> None:
        settings = self._place.settings
        while not self._ended:
            loading = not self._phase or self._phase.startswith("loading")
            limit = settings.loading_stall_seconds if loading else settings.stall_seconds
            left = self._heard + limit - time.monotonic()
            if left <= 0:
                where = f"in phase {self._phase}" if self._phase else "since it was started"
                message = f"The worker gave no sign of life for {limit:.0f} seconds {where}."
                self._fail(child, "STALLED", message, "It is tried again where attempts are left.")
                return
            # The limit may become a shorter one meanwhile.
            nap = min(left, settings.stall_seconds, settings.loading_stall_seconds)
            before = time.monotonic()
            await asyncio.sleep(nap)
            if time.monotonic() > before + nap + 1.0:
                # This process was held up itself; what the child has said meanwhile is still in the pipe.
                self._heard = time.monotonic()

    def _fail(self, child: Child, reason: str, message: str, advice: str = "") -> None:
        if not self._failure:
            self._failure = failed(reason, message, advice or "This is a defect of ours; please report it.")
        child.kill()

    def _unexplained_exit(self, child: Child, status: int) -> Message:
        lines = child.last_lines()
        if self._release:
            return event_pb2.StageReleased(reason=self._release)
        if status == -signal.SIGKILL and child.host_ran_out_of_memory():
            advice = "Lower the batch size or max_length, or run it on a machine with more memory."
            return failed("HOST_OUT_OF_MEMORY", "The kernel killed the worker for want of memory.", advice, lines)
        if status == -signal.SIGKILL:
            advice = "Most often the machine was out of memory; see its kernel log. Otherwise somebody killed it."
            return failed("KILLED", "The worker was killed by signal 9.", advice, lines)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        advice = "The last lines show where; if the input looks right, this is a defect: please report it."
        return failed("CRASHED", f"The worker {how} without a result.", advice, lines)

    def _completed(self, ending: event_pb2.Event, child: Child, uploads: Uploads) -> event_pb2.Event:
        if ending.HasField("stage_failed") and not ending.stage_failed.last_lines:
            ending.stage_failed.last_lines[:] = child.last_lines()
        elif ending.HasField("stage_released") and self._release:
            ending.stage_released.reason = self._release
        elif ending.HasField("stage_completed"):
            uploads.fill_in(ending.stage_completed)
            stage = self._place.stage
            if isinstance(stage, Finisher):
                return stage.finish(self.assignment, ending)
        return ending

    def _append(self, event: event_pb2.Event) -> None:
        event.job_id = self.assignment.job_id
        event.stage = self.assignment.stage
        event.attempt = self.assignment.attempt
        event.source = self._place.settings.node_id
        self._reporter.append(event)

    def _labels(self) -> dict[str, Any]:
        stage = fine_tuning_job_pb2.Stage.Name(self.assignment.stage)
        return {"job_id": self.assignment.job_id, "stage": stage, "attempt": self.assignment.attempt}


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Ends a task, and waits until it has cleaned up. Whether it failed is looked at by who awaits its result."""
    task.cancel()
    await asyncio.wait({task})
