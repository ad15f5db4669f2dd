"""The stage worker of every service: pulls work, claims it, runs attempts, reports, and drains."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Coroutine
from importlib import metadata
from typing import Any, cast

from google.protobuf.message import Message
from pydantic import SecretStr

from chassis.attempt.claimed_attempt import Attempt, WorkerContext, clear, failed
from chassis.attempt.reporter import Reporter
from chassis.attempt.spool import ClaimRecord, Spool, SpoolBusy
from chassis.attempt.stage import Sparing, Stage
from chassis.attempt.time_limits import TimeLimits
from chassis.bus import subjects
from chassis.bus.event_bus import (
    Bus,
    BusUnavailable,
    Handlers,
    ResponderFailed,
    Unanswered,
    WorkMessage,
    WorkQueue,
)
from chassis.child.child_process import kill_leftover, kill_processes_of
from chassis.child.spare import Spare
from chassis.events import event_of
from chassis.failpoints import failpoint
from chassis.security.confinement import ChildLimits
from chassis.security.sealing import SealingKey
from chassis.settings import WorkerSettings
from chassis.store.artifact_store import ArtifactStore
from chassis.store.plain_files import delete_tree
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, hardware_pb2, work_pb2

_log = logging.getLogger(__name__)

_POLL_SECONDS = 30.0
_CLAIM_PAUSE_SECONDS = 0.25
_NO_GATEWAY_SECONDS = 2.0
_MAX_CLAIMS = 100
"""Claims for one item, each of which another worker was quicker to make, before others may try."""
_NO_DISK_SECONDS = 5.0
_HURRIED_REPORT_SECONDS = 1.0


class StageWorker:
    """One stage in one process, `settings.slots` attempts at a time."""

    def __init__(
        self,
        bus: Bus,
        store: ArtifactStore,
        stage: Stage,
        settings: WorkerSettings,
        limits: TimeLimits,
    ) -> None:
        self.draining = False
        self.drain_began = asyncio.Event()
        self.address = ""
        """host:port of this process's gRPC server; set it once the server listens."""
        self.hardware: hardware_pb2.Hardware | None = None
        """Hardware of this machine and its free resources."""
        self.complete_node: Callable[[work_pb2.Node], None] = lambda node: None
        """Adds to a node's state what only its service knows."""
        command = stage.spare() if isinstance(stage, Sparing) and settings.warm_spare else None
        self._limits = limits
        spare = Spare(
            command,
            settings.home / stage.service,
            limits=ChildLimits(settings.child_file_bytes, settings.child_memory_bytes),
            linger_seconds=limits.child_linger_seconds,
        )
        self._context = WorkerContext(bus, store, stage, settings, spare, limits)
        self._start_time = time.time()
        self._sealing_key = SealingKey()
        self._spools = settings.home / stage.service / "spool"
        self._workdirs = settings.home / stage.service / "work"
        self._queue: WorkQueue = bus.work(stage.service, settings.pool)
        self._slots = asyncio.Semaphore(settings.slots)
        self._attempts: dict[str, Attempt] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._hurried = asyncio.Event()
        self._settled = asyncio.Event()
        """Set while nothing is pulled or claimed."""
        self._settled.set()
        self._nudges: Handlers | None = None
        self._waiting: asyncio.Task[WorkMessage | None] | None = None
        self._puller: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Ends attempts that an earlier process left behind, and starts to pull. Needs no broker."""
        leftovers = await asyncio.to_thread(self._take_leftovers)
        await asyncio.to_thread(self._sweep_workdirs)
        await asyncio.to_thread(self._context.store.sweep)
        for spool in leftovers:
            self._spawn(self._report_leftover(spool))
        self._context.spare.open()
        # A change of a job's state may mean a new directive for the worker that holds its claim.
        self._nudges = await self._context.bus.subscribe(subjects.event("*", "state_changed"), self._nudge)
        self._puller = asyncio.create_task(self._pull(), name="pull")

    def node(self) -> work_pb2.Node:
        """Returns the state of this process."""
        settings = self._context.settings
        node = work_pb2.Node(
            id=settings.node_id,
            service=self._context.stage.service,
            address=self.address,
            version=metadata.version("finetuneflow-server"),
            pool=settings.pool,
            slots=settings.slots,
            runs=self.runs(),
            hardware=self.hardware,
            draining=self.draining,
        )
        node.start_time.FromNanoseconds(int(self._start_time * 1e9))
        self.complete_node(node)
        return node

    def runs(self) -> list[work_pb2.Run]:
        """Returns the running attempts, oldest first."""
        found = []
        for attempt in sorted(self._attempts.values(), key=lambda each: each.start_time):
            given = attempt.assignment
            run = work_pb2.Run(job_id=given.job_id, stage=given.stage, attempt=given.attempt)
            run.start_time.FromNanoseconds(int(attempt.start_time * 1e9))
            run.spooled_events = attempt.waiting_events
            found.append(run)
        return found

    def begin_drain(self) -> None:
        """Stops taking work, and asks children to save a checkpoint and exit. Idempotent."""
        if self.draining:
            return
        self.draining = True
        self.drain_began.set()
        if self._waiting:
            self._waiting.cancel()
        for attempt in list(self._attempts.values()):
            attempt.drain()

    async def drain(self, limit_seconds: float | None = None) -> None:
        """Starts a drain and waits until all events are accepted. Idempotent.

        A child that is not done after `limit_seconds` (default: the setting), or when `hurry` is called, is killed.
        Events that no gateway accepts stay on disk for the next process.
        """
        limit = self._context.settings.drain_seconds if limit_seconds is None else limit_seconds
        self.begin_drain()
        await self._context.spare.close()
        if not await self._children_ended_within(limit):
            for attempt in list(self._attempts.values()):
                attempt.abandon()
        await self._tasks_ended_within(
            self._limits.last_report_seconds if not self._hurried.is_set() else _HURRIED_REPORT_SECONDS
        )

    def hurry(self) -> None:
        """Kills children of a drain at once: the drain was requested a second time."""
        self._hurried.set()

    async def wait(self) -> None:
        """Waits until pulling has stopped because of a drain.

        Raises the error that stopped it otherwise (a full disk, a defect): a process that is alive and takes no work
        would go unnoticed.
        """
        if self._puller:
            await asyncio.shield(self._puller)

    async def stop(self) -> None:
        """Drains, then cancels remaining tasks."""
        await self.drain()
        left = {*self._tasks, *({self._puller} if self._puller else ())}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        if self._nudges:
            await self._nudges.stop()

    async def _children_ended_within(self, seconds: float) -> bool:
        """Returns True if, within `seconds`, all children have ended."""
        tasks = {asyncio.create_task(self._wait_for_attempts()), asyncio.create_task(self._hurried.wait())}
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        over = not self._hurried.is_set() and any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return over

    async def _wait_for_attempts(self) -> None:
        # A claim in progress may still be granted.
        await self._settled.wait()
        for attempt in list(self._attempts.values()):
            await attempt.over.wait()

    async def _tasks_ended_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while left := {task for task in (*self._tasks, self._puller) if task and not task.done()}:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            await asyncio.wait(left, timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
        return True

    async def _pull(self) -> None:
        while not self.draining:
            await self._slots.acquire()
            attempt = None
            try:
                if not self.draining:
                    self._settled.clear()
                    attempt = await self._next_attempt()
            finally:
                if not attempt:
                    self._slots.release()
                    self._settled.set()
            if attempt:
                self._attempts[attempt.assignment.claim_id] = attempt
                self._spawn(self._run(attempt))
                self._settled.set()
                if self.draining:
                    attempt.drain()

    async def _next_attempt(self) -> Attempt | None:
        self._waiting = asyncio.create_task(self._queue.next(_POLL_SECONDS))
        try:
            message = await self._waiting
        except asyncio.CancelledError:
            if self.draining and self._waiting.cancelled():
                return None
            self._waiting.cancel()
            raise
        finally:
            self._waiting = None
        return await self._claim(message) if message else None

    async def _claim(self, message: WorkMessage) -> Attempt | None:
        """Claims the item's attempt, or the one that is next in the queue."""
        item, take_next = message.item, True
        for _ in range(_MAX_CLAIMS):
            claimed = await self._claim_item(message, item, take_next=take_next)
            if claimed is None:
                return None
            answer, spool, secrets = claimed
            if answer.HasField("assignment"):
                failpoint("claim.granted")
                attempt = Attempt(self._context, answer.assignment, spool, secrets)
                await message.ack()
                failpoint("claim.acked")
                return attempt
            spool.delete()
            if answer.HasField("instead"):
                item, take_next = answer.instead, False
            elif not take_next:
                # Another worker was first. It may be what its own item stood for that is left.
                item, take_next = message.item, True
                await message.hold()
            else:
                _log.info("claim refused: %s", answer.refused.reason, extra={"job_id": item.job_id})
                await message.ack()
                failpoint("claim.acked")
                return None
        await message.nak(_CLAIM_PAUSE_SECONDS)
        return None

    async def _claim_item(
        self, message: WorkMessage, item: work_pb2.WorkItem, *, take_next: bool
    ) -> tuple[work_pb2.ClaimResponse, Spool, dict[str, SecretStr]] | None:
        """Returns the answer to a claim, its spool, and the secrets that were sealed in it; None, after a nak of the
        message, if there is no answer."""
        request = work_pb2.ClaimRequest(
            job_id=item.job_id,
            stage=item.stage,
            attempt=item.attempt,
            claim_id=uuid.uuid4().hex,
            node_id=self._context.settings.node_id,
            take_next=take_next,
            public_key=self._sealing_key.public_bytes,
        )
        # The spool comes first: a claim that cannot be stored would cost the job an attempt, and the next process must
        # know of one whose answer was lost.
        try:
            spool = await asyncio.to_thread(self._spool, request)
        except (OSError, SpoolBusy) as error:
            _log.error("work cannot be taken: %s", error, extra={"job_id": item.job_id})
            await message.nak(_NO_DISK_SECONDS)
            await asyncio.sleep(_NO_DISK_SECONDS)
            return None
        try:
            answer = await self._request_claim(message, request)
        except BaseException:
            # It is unknown if the claim was granted: the next process reports it as ended.
            spool.close()
            raise
        if not answer:
            if self.draining:
                # It may have been granted although no answer arrived. No other worker gets it before it is released.
                self._end(spool, event_pb2.StageReleased(reason="DRAINED"))
                self._spawn(self._report_leftover(spool))
            else:
                spool.delete()
            await message.nak(_NO_GATEWAY_SECONDS)
            return None
        secrets: dict[str, SecretStr] = {}
        # To clear a field of an assignment that is not there would make one.
        if answer.HasField("assignment"):
            secrets = self._sealing_key.open(answer.assignment.sealed_secrets, request.claim_id)
            answer.assignment.ClearField("sealed_secrets")
        return answer, spool, secrets

    async def _request_claim(
        self, message: WorkMessage, request: work_pb2.ClaimRequest
    ) -> work_pb2.ClaimResponse | None:
        # A claim without an answer may have been granted, or may be granted later by a gateway that was stopped and
        # continues: it is repeated with the same id until a gateway answers. This slot cannot be used meanwhile, and a
        # granted claim that no worker runs counts as a failure when its lease ends.
        began = time.monotonic()
        subject = subjects.claim(self._context.stage.service, self._context.settings.pool)
        repeated = perhaps_granted = False
        while True:
            try:
                return await self._context.bus.request(
                    subject, request, work_pb2.ClaimResponse, self._limits.claim_answer_seconds, everyone=repeated
                )
            except BusUnavailable as error:
                if isinstance(error, Unanswered | ResponderFailed):
                    perhaps_granted = isinstance(error, Unanswered)
                late = time.monotonic() - began >= self._limits.claim_repeats_seconds
                if self.draining or (late and not perhaps_granted):
                    _log.warning("no gateway answered a claim: %s", error, extra={"job_id": request.job_id})
                    return None
            repeated = True
            await message.hold()
            await asyncio.sleep(_CLAIM_PAUSE_SECONDS)

    def _spool(self, request: work_pb2.ClaimRequest) -> Spool:
        record = ClaimRecord(
            job_id=request.job_id,
            stage=int(request.stage),
            attempt=request.attempt,
            claim_id=request.claim_id,
            workdir=self._workdirs / request.claim_id,
        )
        spool = Spool(self._spools, record)
        failpoint("claim.spooled")
        return spool

    def _nudge(self, subject: str, data: bytes) -> None:
        job_id = subject.split(".")[3]
        for attempt in self._attempts.values():
            if attempt.assignment.job_id == job_id:
                attempt.nudge()

    async def _run(self, attempt: Attempt) -> None:
        given = attempt.assignment
        labels = {"job_id": given.job_id, "attempt": given.attempt}
        _log.info("began %s", fine_tuning_job_pb2.Stage.Name(given.stage), extra=labels)
        try:
            await attempt.run()
        except Exception:  # noqa: BLE001 - its heartbeat ends, so its lease expires; other attempts continue
            _log.exception("an attempt could not be stored", extra=labels)
        finally:
            del self._attempts[given.claim_id]
            self._slots.release()
        _log.info("ended %s", fine_tuning_job_pb2.Stage.Name(given.stage), extra=labels)
        # The slot is free already: the next attempt need not wait until gigabytes are deleted.
        await attempt.clear()

    def _take_leftovers(self) -> list[Spool]:
        spools = Spool.leftovers(self._spools)
        for spool in spools:
            if spool.record.child_pid:
                kill_leftover(spool.record.child_pid, spool.record.child_create_time)
            # A child may have been started without being recorded.
            kill_processes_of(spool.record.workdir)
            if not spool.sealed:
                message = "The worker's supervisor ended while the worker was running."
                self._end(spool, failed("KILLED", message, "The job is retried if attempts are left."))
        return spools

    def _end(self, spool: Spool, ending: Message) -> None:
        event = event_of(ending)
        event.job_id = spool.record.job_id
        event.stage = cast(fine_tuning_job_pb2.Stage, spool.record.stage)
        event.attempt = spool.record.attempt
        event.source = self._context.settings.node_id
        spool.append(event)

    def _sweep_workdirs(self) -> None:
        """Removes folders of claims without a spool: threads of a preparation may have written after its end."""
        for workdir in self._workdirs.glob("*"):
            if not (self._spools / f"{workdir.name}.json").exists():
                delete_tree(workdir)

    async def _report_leftover(self, spool: Spool) -> None:
        _log.info("reporting events that an earlier process left behind", extra={"job_id": spool.record.job_id})
        try:
            await Reporter(self._context.bus, spool, lambda _: None, self._limits.heartbeat_seconds).run()
        except asyncio.CancelledError:
            spool.close()
            raise
        spool.delete()
        await asyncio.to_thread(clear, spool.record.workdir)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
