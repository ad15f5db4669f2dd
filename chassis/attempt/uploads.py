"""What a child wrote goes to the artifact store before the event that names it is reported."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from google.protobuf.message import Message

from chassis.attempt.time_limits import TimeLimits
from chassis.events import event_of
from chassis.failpoints import failpoint
from chassis.store.artifact_store import ArtifactStore, Stored
from chassis.store.disk_full import is_disk_full
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

_log = logging.getLogger(__name__)

KINDS: Final = frozenset({"checkpoint", "artifact"})
"""Kinds of events that name a file or folder of the child's out_dir."""
NOT_STORED: Final = "CHECKPOINT_NOT_STORED"


class UploadFailed(Exception):
    """The store does not take it, or it is not there."""

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        if cause and is_disk_full(cause):
            self.reason = "STORE_FULL"
            self.advice = "Have the operator make room in the artifact store; the job then goes on where it was."
        else:
            self.reason = "UPLOAD_FAILED"
            self.advice = "Have the operator see to the artifact store; the job then goes on where it was."


class Uploads:
    """The uploads of one attempt, one at a time, in the order of their events."""

    def __init__(
        self, store: ArtifactStore, assignment: work_pb2.Assignment, out_dir: Path, limits: TimeLimits
    ) -> None:
        stage = fine_tuning_job_pb2.Stage.Name(assignment.stage).removeprefix("STAGE_").lower()
        self._store = store
        self._tenant = assignment.tenant
        self._prefix = f"jobs/{assignment.job_id}/{stage}/{assignment.attempt}"
        self._out_dir = out_dir
        self._limits = limits
        self._stored: dict[str, Stored] = {}
        self._waiting: list[event_pb2.Event] = []
        """Checkpoints that the store has not taken yet, oldest first."""

    async def upload(self, event: event_pb2.Event) -> list[event_pb2.Event]:
        """Stores what the event names, and writes path, hash and size into it. What may be reported now, in order.

        A checkpoint that the store does not take is not reported; a warning is, and it is tried again with the next
        one. UploadFailed for anything else.
        """
        if event.HasField("artifact"):
            await self._upload(event, self._limits.upload_retry_seconds)
            return [event]
        await self._supersede(event)
        self._waiting.append(event)
        try:
            return await self._upload_waiting(self._limits.checkpoint_retry_seconds)
        except _Partly as partly:
            step = partly.event.checkpoint.step
            warning = event_pb2.Warning(
                reason=NOT_STORED,
                message=f"The checkpoint of step {step} could not be stored: {partly.failure}",
                advice=f"{partly.failure.advice} Until one is stored, a failure costs everything since the last one.",
            )
            return [*partly.done, event_of(warning)]

    async def finish(self, ending: event_pb2.Event | None) -> list[event_pb2.Event]:
        """Stores, with patience, what still waits when the child has ended. UploadFailed when the result cannot do
        without it."""
        try:
            return await self._upload_waiting(self._limits.upload_retry_seconds)
        except _Partly as partly:
            needed = ending.stage_completed.training.best_checkpoint_path if ending else ""
            if needed and needed in {str(PurePosixPath(event.checkpoint.path)) for event in self._waiting}:
                raise partly.failure from partly
            steps = ", ".join(str(event.checkpoint.step) for event in self._waiting)
            warning = event_pb2.Warning(
                reason=NOT_STORED,
                message=f"Checkpoints that could not be stored are lost (steps {steps}): {partly.failure}",
                advice=partly.failure.advice,
            )
            return [*partly.done, event_of(warning)]

    async def _upload_waiting(self, delays: Sequence[float]) -> list[event_pb2.Event]:
        done: list[event_pb2.Event] = []
        while self._waiting:
            try:
                await self._upload(self._waiting[0], delays)
            except UploadFailed as failure:
                raise _Partly(done, self._waiting[0], failure) from failure
            done.append(self._waiting.pop(0))
        return done

    async def _supersede(self, event: event_pb2.Event) -> None:
        """Of those that wait, a newer one leaves only the best: they hold the disk of the machine."""
        for waiting in list(self._waiting):
            if event.checkpoint.best or not waiting.checkpoint.best:
                self._waiting.remove(waiting)
                await asyncio.to_thread(shutil.rmtree, self._out_dir / waiting.checkpoint.path, ignore_errors=True)

    async def _upload(self, event: event_pb2.Event, delays: Sequence[float]) -> None:
        payload = event.checkpoint if event.HasField("checkpoint") else event.artifact
        relative = str(PurePosixPath(payload.path))
        local = self._out_dir / relative
        if not local.resolve().is_relative_to(self._out_dir.resolve()) or not local.exists():
            raise UploadFailed(f"{payload.path!r} is not there below the child's out_dir")
        path = f"{self._prefix}/{relative}"
        folder = local.is_dir()
        stored = await self._put(self._store.put_folder if folder else self._store.put_file, local, path, delays)
        failpoint("upload.stored")
        self._stored[relative] = Stored(path, stored.sha256, stored.size_bytes)
        payload.path = path
        payload.size_bytes = stored.size_bytes
        if isinstance(payload, event_pb2.CheckpointSaved):
            payload.manifest_sha256 = stored.sha256
            # The store has it: a long training would fill the node's disk with copies that nobody reads.
            await asyncio.to_thread(shutil.rmtree, local)
            return
        payload.sha256 = stored.sha256
        if not payload.media_type:
            guess = mimetypes.guess_type(relative)[0] or "application/octet-stream"
            payload.media_type = "inode/directory" if folder else guess

    def fill_in(self, completed: event_pb2.StageCompleted) -> None:
        """In the result, a `<name>_path` that names something uploaded becomes its path in the store, and
        `<name>_manifest_sha256`, `<name>_sha256` and `<name>_size_bytes` beside it are set."""
        kind = completed.WhichOneof("result")
        if not kind:
            return
        result: Message = getattr(completed, kind)
        for name in [field.name for field in result.DESCRIPTOR.fields if field.name.endswith("_path")]:
            stored = self._stored.get(getattr(result, name))
            if not stored:
                continue
            noun = name.removesuffix("_path")
            setattr(result, name, stored.path)
            facts = {"manifest_sha256": stored.sha256, "sha256": stored.sha256, "size_bytes": stored.size_bytes}
            for suffix, value in facts.items():
                if f"{noun}_{suffix}" in result.DESCRIPTOR.fields_by_name:
                    setattr(result, f"{noun}_{suffix}", value)

    async def _put(self, put: Callable[[Path, str], Stored], local: Path, path: str, delays: Sequence[float]) -> Stored:
        for delay in (*delays, None):
            try:
                failpoint("upload.store")
                return await asyncio.to_thread(put, local, f"{self._tenant}/{path}")
            except OSError as error:
                if delay is None or isinstance(error, FileExistsError):
                    raise UploadFailed(f"the artifact store does not take {path}: {error}", error) from error
                _log.warning("the artifact store does not take %s, trying again: %s", path, error)
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")


class _Partly(Exception):
    def __init__(self, done: list[event_pb2.Event], event: event_pb2.Event, failure: UploadFailed) -> None:
        super().__init__(str(failure))
        self.done = done
        self.event = event
        self.failure = failure
