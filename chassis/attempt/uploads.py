"""Uploads of a child's files to the artifact store, before the events that name them are reported."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from google.protobuf.message import Message

from chassis.attempt.time_limits import TimeLimits
from chassis.events import event_of
from chassis.failpoints import failpoint
from chassis.store.artifact_store import ArtifactStore, Stored
from chassis.store.disk_full import is_disk_full
from chassis.store.plain_files import NotPlainFile, remove_folder
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

_log = logging.getLogger(__name__)

KINDS: Final = frozenset({"checkpoint", "artifact"})
"""Payload kinds that name a file or folder of the child's out_dir."""
NOT_STORED: Final = "CHECKPOINT_NOT_STORED"
CONTINUES: Final = "If attempts are left, the job continues from its latest checkpoint; otherwise create it again."


class UploadFailed(Exception):
    """The store does not accept the file, or the file does not exist."""

    def __init__(self, message: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        if cause and is_disk_full(cause):
            self.reason = "STORE_FULL"
            self.advice = f"Ask the operator to make room in the artifact store. {CONTINUES}"
        else:
            self.reason = "UPLOAD_FAILED"
            self.advice = f"Ask the operator to check the artifact store. {CONTINUES}"


class BadOutput(Exception):
    """The child names a file that is missing, lies outside its out_dir, or is a link."""

    reason = "CRASHED"
    advice = "This is a defect of the worker; please report it with the last lines."


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
        self.stored: dict[str, Stored] = {}
        """Files that have been stored, by the path relative to the out_dir."""
        self._waiting: list[event_pb2.Event] = []
        """Checkpoints that are not stored yet, oldest first."""

    async def upload(self, event: event_pb2.Event) -> list[event_pb2.Event]:
        """Stores the file of an event, and sets path, hash and size. Returns the events to report, in order.

        If a checkpoint cannot be stored, returns a warning instead, and tries again with the next checkpoint. Raises
        UploadFailed for any other file, and BadOutput.
        """
        payload = event.artifact if event.HasField("artifact") else event.checkpoint
        # Nothing below opens or deletes a path that was not checked here.
        payload.path = self._checked(payload.path)
        if event.HasField("artifact"):
            await self._upload(event, self._limits.upload_retry_seconds)
            return [event]
        await self._supersede(event)
        self._waiting.append(event)
        try:
            return await self._upload_waiting(self._limits.checkpoint_retry_seconds)
        except _PartialUpload as partly:
            step = partly.event.checkpoint.step
            warning = event_pb2.Warning(
                reason=NOT_STORED,
                message=f"The checkpoint of step {step} could not be stored: {partly.failure}",
                advice=f"{partly.failure.advice} Until then, a failure loses all steps since the last one stored.",
            )
            return [*partly.done, event_of(warning)]

    async def finish(self, ending: event_pb2.Event | None) -> list[event_pb2.Event]:
        """Stores the remaining checkpoints, with more retries. Called once the child has ended.

        Raises UploadFailed if the result needs one that cannot be stored.
        """
        try:
            return await self._upload_waiting(self._limits.upload_retry_seconds)
        except _PartialUpload as partly:
            needed = ending.stage_completed.training.best_checkpoint_path if ending else ""
            if needed and needed in {event.checkpoint.path for event in self._waiting}:
                raise partly.failure from partly
            steps = ", ".join(str(event.checkpoint.step) for event in self._waiting)
            warning = event_pb2.Warning(
                reason=NOT_STORED,
                message=f"Checkpoints could not be stored and are lost (steps {steps}): {partly.failure}",
                advice=partly.failure.advice,
            )
            return [*partly.done, event_of(warning)]

    async def _upload_waiting(self, delays: Sequence[float]) -> list[event_pb2.Event]:
        done: list[event_pb2.Event] = []
        while self._waiting:
            try:
                await self._upload(self._waiting[0], delays)
            except UploadFailed as failure:
                raise _PartialUpload(done, self._waiting[0], failure) from failure
            done.append(self._waiting.pop(0))
        return done

    async def _supersede(self, event: event_pb2.Event) -> None:
        """Drops waiting checkpoints that a newer one replaces, except the best one: they fill the disk."""
        for waiting in list(self._waiting):
            if event.checkpoint.best or not waiting.checkpoint.best:
                self._waiting.remove(waiting)
                await asyncio.to_thread(remove_folder, self._out_dir, waiting.checkpoint.path)

    async def _upload(self, event: event_pb2.Event, delays: Sequence[float]) -> None:
        payload = event.checkpoint if event.HasField("checkpoint") else event.artifact
        relative = payload.path
        local = self._out_dir / relative
        path = f"{self._prefix}/{relative}"
        folder = local.is_dir()
        stored = await self._put(self._store.put_folder if folder else self._store.put_file, local, path, delays)
        failpoint("upload.stored")
        self.stored[relative] = Stored(path, stored.sha256, stored.size_bytes)
        payload.path = path
        payload.size_bytes = stored.size_bytes
        if isinstance(payload, event_pb2.CheckpointSaved):
            payload.manifest_sha256 = stored.sha256
            # It is stored: copies that nothing reads would fill the disk during a long training.
            await asyncio.to_thread(remove_folder, self._out_dir, relative)
            return
        payload.sha256 = stored.sha256
        if not payload.media_type:
            guess = mimetypes.guess_type(relative)[0] or "application/octet-stream"
            payload.media_type = "inode/directory" if folder else guess

    def _checked(self, named: str) -> str:
        """Returns a path below out_dir in its plain form. Raises BadOutput."""
        relative = PurePosixPath(named)
        local = self._out_dir / relative
        inside = relative.parts and not relative.is_absolute() and ".." not in relative.parts and "\0" not in named
        try:
            if inside and local.exists() and local.resolve() == self._out_dir.resolve() / relative:
                return str(relative)
        except OSError as error:
            # A part of the path is longer than the file system allows.
            raise BadOutput(f"The worker named {named[:200]!r}, which can't be read: {error.strerror}.") from error
        raise BadOutput(f"The worker named {named[:200]!r}, which is no file or folder of its own.")

    def fill_in(self, completed: event_pb2.StageCompleted) -> None:
        """Replaces each `<name>_path` of an uploaded file in the result by its path in the store.

        Also sets `<name>_manifest_sha256`, `<name>_sha256` and `<name>_size_bytes` where the result has such a field.
        """
        kind = completed.WhichOneof("result")
        if not kind:
            return
        result: Message = getattr(completed, kind)
        for name in [field.name for field in result.DESCRIPTOR.fields if field.name.endswith("_path")]:
            stored = self.stored.get(getattr(result, name))
            if not stored:
                continue
            noun = name.removesuffix("_path")
            setattr(result, name, stored.path)
            facts = {"manifest_sha256": stored.sha256, "sha256": stored.sha256, "size_bytes": stored.size_bytes}
            for suffix, value in facts.items():
                if f"{noun}_{suffix}" in result.DESCRIPTOR.fields_by_name:
                    setattr(result, f"{noun}_{suffix}", value)

    async def _put(
        self, put: Callable[[Path, str, Path], Stored], local: Path, path: str, delays: Sequence[float]
    ) -> Stored:
        for delay in (*delays, None):
            try:
                failpoint("upload.store")
                return await asyncio.to_thread(put, local, f"{self._tenant}/{path}", self._out_dir)
            except (NotPlainFile, ValueError) as error:
                raise BadOutput(f"The worker's output {path[:200]} can't be stored: {error}.") from error
            except OSError as error:
                if delay is None or isinstance(error, FileExistsError):
                    raise UploadFailed(f"the artifact store does not accept {path}: {error}", error) from error
                _log.warning("the artifact store does not accept %s, trying again: %s", path, error)
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")


class _PartialUpload(Exception):
    def __init__(self, done: list[event_pb2.Event], event: event_pb2.Event, failure: UploadFailed) -> None:
        super().__init__(str(failure))
        self.done = done
        self.event = event
        self.failure = failure
