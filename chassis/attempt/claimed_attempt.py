"""One claimed attempt: prepares its inputs, runs the child, and reports events and one ending."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from pydantic import SecretStr

from chassis.attempt.reporter import Reporter
from chassis.attempt.spool import Spool
from chassis.attempt.stage import Delivering, Finisher, Stage
from chassis.attempt.time_limits import TimeLimits
from chassis.attempt.uploads import CONTINUES, KINDS, BadOutput, UploadFailed, Uploads
from chassis.bus.event_bus import Bus
from chassis.child import out_of_memory
from chassis.child.child_process import WORKDIR, Child, ChildCommand, kill_processes_of
from chassis.child.pipe import SEE_LAST_OUTPUT, failure_of
from chassis.child.spare import Spare
from chassis.child.usage import Usage
from chassis.error_protocols import CallerFault, SystemFault
from chassis.events import ENDINGS, MAX_EVENT_BYTES, event_of
from chassis.failpoints import failpoint
from chassis.preparation import Preparation, Stalled
from chassis.settings import WorkerSettings
from chassis.stall_timer import StallTimer
from chassis.store.artifact_store import ArtifactStore
from chassis.store.disk_full import is_disk_full, tells_of_full_disk
from chassis.store.plain_files import delete_tree
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

_log = logging.getLogger(__name__)

_EXIT_SECONDS = 10.0
"""Time that a child has to exit after it reported how it ended."""
_ROOM = f"Ask the operator to make room on the disk of the worker's FTF_HOME. {CONTINUES}"


@dataclass(frozen=True)
class WorkerContext:
    """The connections, settings and limits that all attempts of a process share."""

    bus: Bus
    store: ArtifactStore
    stage: Stage
    settings: WorkerSettings
    spare: Spare
    limits: TimeLimits


def failed(reason: str, message: str, advice: str = "", lines: list[str] | None = None) -> event_pb2.StageFailed:
    """Builds a StageFailed for an error of the system."""
    fault = fine_tuning_job_pb2.FAULT_SYSTEM_ERROR
    return event_pb2.StageFailed(fault=fault, reason=reason, message=message, advice=advice, last_lines=lines)


def clear(workdir: Path) -> None:
    """Kills every process of the attempt with that folder, and deletes the folder."""
    # The child's process group is gone; whatever it started may have left the group.
    kill_processes_of(workdir)
    delete_tree(workdir)


class Attempt:
    """An attempt, from the claim until its last event is accepted."""

    def __init__(
        self,
        context: WorkerContext,
        assignment: work_pb2.Assignment,
        spool: Spool,
        secrets: Mapping[str, SecretStr],
    ) -> None:
        self.assignment = assignment
        self._secrets = secrets
        """Until the child's inputs are prepared; then those that the delivery needs, until it has begun."""
        self.start_time = time.time()
        self.over = asyncio.Event()
        """Set once the child has ended and only its events remain to be accepted."""
        self._context = context
        self._spool = spool
        self._reporter = Reporter(context.bus, spool, self._on_directive, context.limits.heartbeat_seconds)
        self._child: Child | None = None
        self._beginning: asyncio.Task[ChildCommand | event_pb2.StageFailed] | None = None
        self._uploading: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[event_pb2.Event] | None = None
        self._release = ""
        """PAUSED, DRAINED or CANCELLED once the attempt must be released."""
        self._failure: event_pb2.StageFailed | None = None
        """Why the supervisor killed the child."""
        self._phase = ""
        self._ending: event_pb2.Event | None = None
        """The ending event that the child emitted."""
        self._stall_timer = StallTimer()
        self._held = contextlib.ExitStack()
        """Resources that are released when the child has ended, such as the locks of its inputs."""

    @property
    def waiting_events(self) -> int:
        """Number of events that are not accepted yet."""
        return self._reporter.waiting_events

    async def run(self) -> None:
        """Runs the attempt; afterwards call `clear`. If cancelled, kills the child and leaves the spool for the next
        process."""
        working = asyncio.create_task(self._work(), name=f"work-{self.assignment.job_id}")
        reporting = asyncio.create_task(self._reporter.run(), name=f"report-{self.assignment.job_id}")
        try:
            await asyncio.wait({working, reporting}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                # Raises if not even the ending could be stored. Without a heartbeat the lease expires.
                await working
            await reporting
            if self._reporter.stopped:
                _log.info("the claim is not current any more; stopping", extra=self._labels())
        finally:
            await _cancelled(reporting)
            await _cancelled(working)
            self._spool.close()
        self._spool.delete()

    async def clear(self) -> None:
        """Removes everything of the attempt from this machine. Call it after `run`."""
        await asyncio.to_thread(clear, self._spool.record.workdir)

    def nudge(self) -> None:
        """Reports at once: the answer carries the current directive."""
        self._reporter.nudge()

    def drain(self) -> None:
        """Asks the child to save a checkpoint and exit."""
        self._request_release("DRAINED")

    def abandon(self) -> None:
        """Kills a child that did not exit in time, and abandons uploads.

        The operator asked for it, so the attempt counts as released, not as failed.
        """
        self._request_release("DRAINED")
        if self._child:
            self._child.kill()
        if self._uploading:
            self._uploading.cancel()
        if self._finishing:
            self._finishing.cancel()

    def _on_directive(self, directive: work_pb2.Directive) -> None:
        if directive == work_pb2.DIRECTIVE_PAUSE:
            self._request_release("PAUSED")
        elif directive == work_pb2.DIRECTIVE_CANCEL:
            self._request_release("CANCELLED")

    def _request_release(self, reason: str) -> None:
        if self._release in ("CANCELLED", reason):
            return
        self._release = reason
        if self._finishing and reason == "CANCELLED":
            self._finishing.cancel()
        if self._child:
            self._signal_release(self._child)
        elif self._beginning:
            self._beginning.cancel()

    def _signal_release(self, child: Child) -> None:
        if self._release == "CANCELLED":
            child.control("cancel")
            asyncio.get_running_loop().call_later(self._context.settings.cancel_grace_seconds, child.kill)
        elif self._release:
            child.control("pause")

    async def _work(self) -> None:
        try:
            ending = await self._outcome()
        except OSError as error:
            _log.exception("an attempt failed on this machine", extra=self._labels())
            ending = failed("MACHINE_FAILED", f"The worker's machine failed: {error}", "See the worker's log.")
            if is_disk_full(error):
                ending.reason, ending.advice = "DISK_FULL", _ROOM
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            _log.exception("a defect of the supervisor", extra=self._labels())
            ending = failed("CRASHED", f"{type(error).__name__}: {error}"[:4096], "See the worker's log.")
        finally:
            self.over.set()
            if self._child:
                self._child.close()
            self._held.close()
        failpoint("attempt.ending")
        await self._append(ending if isinstance(ending, event_pb2.Event) else event_of(ending))

    async def _outcome(self) -> event_pb2.Event | Message:
        if self._release:
            return event_pb2.StageReleased(reason=self._release)
        workdir = self._spool.record.workdir
        workdir.mkdir(parents=True)
        self._beginning = asyncio.create_task(self._begin(workdir), name=f"begin-{self.assignment.job_id}")
        try:
            begun = await self._beginning
        except asyncio.CancelledError:
            if self._release and self._beginning.cancelled():
                return event_pb2.StageReleased(reason=self._release)
            raise
        if not isinstance(begun, ChildCommand):
            return begun
        assert self._child  # noqa: S101 - begun
        uploads = Uploads(self._context.store, self.assignment, begun.out_dir, self._context.limits)
        ending = await self._follow(self._child, begun, uploads)
        if isinstance(ending, event_pb2.Event) and ending.HasField("stage_completed"):
            return await self._deliver(ending, begun, uploads)
        return ending

    async def _begin(self, workdir: Path) -> ChildCommand | event_pb2.StageFailed:
        stage, settings = self._context.stage, self._context.settings
        secrets = self._secrets
        kept = stage.secrets_of_delivery(self.assignment) if isinstance(stage, Delivering) else ()
        self._secrets = {name: value for name, value in secrets.items() if name in kept}
        preparing = stage.prepare(self.assignment, workdir, self._context.store, secrets)
        try:
            progress_seconds = self._context.limits.preparation_progress_seconds
            preparation = Preparation(self._report_phase, progress_seconds, self._held)
            command = await preparation.run(preparing, settings.preparation_stall_seconds)
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            return self._preparation_failure(error)
        child = self._child = await self._context.spare.start(command, workdir)
        failpoint("child.started")
        self._record(child)
        return command

    def _record(self, child: Child) -> None:
        """Notes the process on disk, so that the next supervisor can end it."""
        self._spool.record.child_pid = child.pid
        self._spool.record.child_create_time = child.create_time
        self._spool.save_record()

    def _preparation_failure(self, error: Exception) -> event_pb2.StageFailed:
        if isinstance(error, Stalled):
            return failed("STALLED", str(error), "The job is retried if attempts are left.")
        failure = failure_of(error)
        if isinstance(error, CallerFault | SystemFault):
            return failure
        _log.error("preparing an attempt failed", exc_info=error, extra=self._labels())
        failure.reason, failure.advice = "PREPARATION_FAILED", "See the worker's log."
        if is_disk_full(error):
            failure.reason, failure.advice = "DISK_FULL", _ROOM
        return failure

    async def _deliver(
        self, ending: event_pb2.Event, command: ChildCommand, uploads: Uploads
    ) -> event_pb2.Event | Message:
        """Runs the stage's delivery, if it has one. Returns how the attempt ends."""
        stage, workdir = self._context.stage, self._spool.record.workdir
        secrets, self._secrets = self._secrets, {}
        if not isinstance(stage, Delivering):
            return ending
        completed = ending.stage_completed
        delivery = stage.delivery(self.assignment, completed, uploads.stored, command, workdir, secrets)
        if delivery is None:
            return ending
        if self._release == "CANCELLED":
            return event_pb2.StageReleased(reason="CANCELLED")
        if self._child:
            self._child.close()
        # What the child may have left behind could change the files.
        await asyncio.to_thread(kill_processes_of, workdir)
        env = {**delivery.env, WORKDIR: str(workdir)}
        linger = self._context.limits.child_linger_seconds
        child = self._child = await Child.start(delivery.argv, env, workdir, linger_seconds=linger)
        self._record(child)
        child.control(delivery.secret.get_secret_value())
        # It could not be told of a request before it was started.
        self._signal_release(child)
        self._ending, self._phase = None, ""
        watching = asyncio.create_task(self._watch(child))
        try:
            await self._read(child, asyncio.Queue())
            watching.cancel()
            status = await child.wait()
        finally:
            await _cancelled(watching)
        if self._release == "CANCELLED":
            return event_pb2.StageReleased(reason="CANCELLED")
        if self._failure:
            return self._failure
        delivered = self._ending
        if delivered is None:
            return self._unexplained_exit(child, command, status)
        if not delivered.HasField("stage_completed"):
            return delivered
        completed.MergeFrom(delivered.stage_completed)
        return ending

    async def _follow(self, child: Child, command: ChildCommand, uploads: Uploads) -> event_pb2.Event | Message:
        queue: asyncio.Queue[event_pb2.Event | None] = asyncio.Queue()
        uploading = self._uploading = asyncio.create_task(self._upload(child, uploads, queue))
        watching = asyncio.create_task(self._watch(child))
        usage = Usage(child.pid, {**command.env, **command.late_env})
        sampling = None if command.driver else asyncio.create_task(self._sample(usage))
        providing = asyncio.create_task(self._provide(child, command.provide)) if command.provide else None
        try:
            await self._read(child, queue)
            watching.cancel()
            if providing:
                await _cancelled(providing)
            status = await child.wait()
            if sampling:
                await _cancelled(sampling)
                await self._tell_usage(usage)
            if self._release == "CANCELLED":
                return event_pb2.StageReleased(reason="CANCELLED")
            await asyncio.wait({uploading})
            if uploading.cancelled():
                return event_pb2.StageReleased(reason=self._release)
            uploading.result()
            if self._failure:
                self._failure.last_lines[:] = child.last_lines()
                return self._failure
            if self._ending is None:
                return self._unexplained_exit(child, command, status)
            return await self._completed(self._ending, child, uploads)
        finally:
            for task in filter(None, (uploading, watching, sampling, providing)):
                await _cancelled(task)

    async def _provide(self, child: Child, provide: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await provide()
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            if not self._ending:
                self._failure = self._failure or self._preparation_failure(error)
                child.kill()

    async def _read(self, child: Child, queue: asyncio.Queue[event_pb2.Event | None]) -> None:
        self._stall_timer.reset()
        try:
            async with contextlib.aclosing(child.frames()) as frames:
                async for frame in frames:
                    self._stall_timer.reset()
                    if not frame or self._ending:
                        continue
                    if len(frame) > MAX_EVENT_BYTES:
                        self._fail(child, "EVENT_TOO_LARGE", f"The worker wrote an event of {len(frame)} bytes.")
                        continue
                    event = event_pb2.Event.FromString(frame)
                    kind = event.WhichOneof("payload")
                    if kind in ENDINGS:
                        self._ending = event
                        asyncio.get_running_loop().call_later(_EXIT_SECONDS, child.kill)
                    elif kind in KINDS:
                        queue.put_nowait(event)
                    else:
                        self._phase = event.phase.name if kind == "phase" else self._phase or "started"
                        await self._append(event)
        except (ValueError, DecodeError) as error:
            self._fail(child, "CRASHED", f"The worker wrote an invalid event: {error}")
        finally:
            queue.put_nowait(None)

    async def _upload(self, child: Child, uploads: Uploads, queue: asyncio.Queue[event_pb2.Event | None]) -> None:
        try:
            while event := await queue.get():
                for stored in await uploads.upload(event):
                    await self._append(stored)
            if self._release != "CANCELLED":
                for stored in await uploads.finish(self._ending):
                    await self._append(stored)
        except (UploadFailed, BadOutput) as error:
            self._fail(child, error.reason, str(error), error.advice)

    async def _watch(self, child: Child) -> None:
        settings = self._context.settings

        def limit() -> float:
            loading = not self._phase or self._phase.startswith("loading")
            return settings.loading_stall_seconds if loading else settings.stall_seconds

        seconds = await self._stall_timer.wait(limit)
        if not self._ending:
            where = f"in phase {self._phase}" if self._phase else "since it was started"
            message = f"The worker showed no progress for {seconds:.0f} seconds {where} and was stopped."
            self._fail(child, "STALLED", message, "The job is retried if attempts are left.")

    async def _sample(self, usage: Usage) -> None:
        told = time.monotonic()
        while True:
            await asyncio.to_thread(usage.sample)
            if time.monotonic() >= told + self._context.limits.usage_report_seconds:
                told = time.monotonic()
                await self._tell_usage(usage)
            await asyncio.sleep(self._context.limits.usage_sample_seconds)

    async def _tell_usage(self, usage: Usage) -> None:
        taken = await asyncio.to_thread(usage.take)
        if taken.peak_memory_bytes:
            await self._append(event_of(taken))

    def _fail(self, child: Child, reason: str, message: str, advice: str = "") -> None:
        if not self._failure:
            self._failure = failed(reason, message, advice or "This is a bug; please report it.")
        child.kill()

    def _unexplained_exit(self, child: Child, command: ChildCommand, status: int) -> Message:
        lines = child.last_lines()
        if self._release:
            return event_pb2.StageReleased(reason=self._release)
        if status == -signal.SIGKILL and child.host_ran_out_of_memory():
            message = "The kernel killed the worker because memory ran out."
            return failed("HOST_OUT_OF_MEMORY", message, out_of_memory.ADVICE, lines)
        if status == -signal.SIGKILL:
            advice = (
                "Ask the operator for the machine's kernel log: usually memory ran out; otherwise someone killed it."
            )
            return failed("KILLED", "The worker was killed by signal 9.", advice, lines)
        if status in (-signal.SIGTERM, -signal.SIGINT):
            advice = (
                "Someone on the worker's machine ended the process. To stop a trainer, send SIGTERM to "
                "`python -m services.trainer`; it saves a checkpoint first."
            )
            return failed("KILLED", f"The worker was ended by {signal.Signals(-status).name}.", advice, lines)
        if fault := command.refusals.get(status):
            failure = failed(fault.reason, fault.message, fault.advice, lines)
            failure.fault = fine_tuning_job_pb2.FAULT_USER_ERROR
            return failure
        if tells_of_full_disk(lines[-5:]):
            return failed("DISK_FULL", f"The worker could not write: {lines[-1]}", _ROOM, lines)
        how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return failed("CRASHED", f"The worker {how} without a result.", SEE_LAST_OUTPUT, lines)

    async def _completed(
        self, ending: event_pb2.Event, child: Child, uploads: Uploads
    ) -> event_pb2.Event | event_pb2.StageFailed | event_pb2.StageReleased:
        if ending.HasField("stage_failed"):
            failure = ending.stage_failed
            if not failure.last_lines:
                failure.last_lines[:] = child.last_lines()
            if failure.reason == "CRASHED" and tells_of_full_disk([failure.message]):
                failure.reason, failure.advice = "DISK_FULL", _ROOM
        elif ending.HasField("stage_released") and self._release:
            ending.stage_released.reason = self._release
        elif ending.HasField("stage_completed"):
            uploads.fill_in(ending.stage_completed)
            stage = self._context.stage
            if isinstance(stage, Finisher):
                return await self._finish(stage, ending)
        return ending

    async def _finish(
        self, stage: Finisher, ending: event_pb2.Event
    ) -> event_pb2.Event | event_pb2.StageFailed | event_pb2.StageReleased:
        context = self._context
        preparation = Preparation(self._report_phase, context.limits.preparation_progress_seconds, self._held)
        work = stage.finish(self.assignment, ending, self._spool.record.workdir, context.store)
        finishing = self._finishing = asyncio.create_task(
            preparation.run(work, context.settings.preparation_stall_seconds),
            name=f"finish-{self.assignment.job_id}",
        )
        try:
            return await finishing
        except asyncio.CancelledError:
            if self._release and finishing.cancelled():
                return event_pb2.StageReleased(reason=self._release)
            raise
        except Exception as error:  # noqa: BLE001 - becomes the event that ends the attempt
            return self._preparation_failure(error)
        finally:
            await _cancelled(finishing)

    def _report_phase(self, phase: event_pb2.Phase) -> None:
        try:
            self._store(event_of(phase))
        except OSError as error:
            # A phase only informs watchers. Events that matter wait for room, or fail.
            _log.warning("phase %s is not reported: %s", phase.name, error, extra=self._labels())

    async def _append(self, event: event_pb2.Event) -> None:
        deadline = time.monotonic() + self._context.limits.disk_patience_seconds
        while True:
            try:
                self._store(event)
                return
            except OSError as error:
                if not is_disk_full(error) or time.monotonic() >= deadline:
                    raise
                _log.warning("an event waits for room on the disk: %s", error, extra=self._labels())
            # Events that are accepted meanwhile make room too.
            await asyncio.sleep(1.0)
            self._stall_timer.reset()

    def _store(self, event: event_pb2.Event) -> None:
        event.job_id = self.assignment.job_id
        event.stage = self.assignment.stage
        event.attempt = self.assignment.attempt
        event.source = self._context.settings.node_id
        self._reporter.append(event)

    def _labels(self) -> dict[str, Any]:
        stage = fine_tuning_job_pb2.Stage.Name(self.assignment.stage)
        return {"job_id": self.assignment.job_id, "stage": stage, "attempt": self.assignment.attempt}


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """Cancels a task and waits until it has ended. Its exception is for the caller that awaits its result."""
    task.cancel()
    await asyncio.wait({task})
