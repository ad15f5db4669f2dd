"""What a child wrote goes to the artifact store before the event that names it is reported."""

from __future__ import annotations

import asyncio
import logging
import mimetypes
import shutil
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Final

from google.protobuf.message import Message

from chassis.artifacts import ArtifactStore, Stored
from chassis.failpoints import failpoint
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

_log = logging.getLogger(__name__)

KINDS: Final = frozenset({"checkpoint", "artifact"})
"""Kinds of events that name a file or folder of the child's out_dir."""
_RETRY_SECONDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)


class UploadFailed(Exception):
    """The store does not take it, or it is not there."""


class Uploads:
    """The uploads of one attempt, one at a time, in the order of their events."""

    def __init__(self, store: ArtifactStore, assignment: work_pb2.Assignment, out_dir: Path) -> None:
        stage = fine_tuning_job_pb2.Stage.Name(assignment.stage).removeprefix("STAGE_").lower()
        self._store = store
        self._tenant = assignment.tenant
        self._prefix = f"jobs/{assignment.job_id}/{stage}/{assignment.attempt}"
        self._out_dir = out_dir
        self._stored: dict[str, Stored] = {}

    async def upload(self, event: event_pb2.Event) -> None:
        """Stores what the event names, and writes path, hash and size into it. UploadFailed."""
        payload = event.checkpoint if event.HasField("checkpoint") else event.artifact
        relative = str(PurePosixPath(payload.path))
        local = self._out_dir / relative
        if not local.resolve().is_relative_to(self._out_dir.resolve()) or not local.exists():
            raise UploadFailed(f"{payload.path!r} is not there below the child's out_dir")
        path = f"{self._prefix}/{relative}"
        folder = local.is_dir()
        stored = await self._put(self._store.put_folder if folder else self._store.put_file, local, path)
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

    async def _put(self, put: Callable[[Path, str], Stored], local: Path, path: str) -> Stored:
        for delay in (*_RETRY_SECONDS, None):
            try:
                return await asyncio.to_thread(put, local, f"{self._tenant}/{path}")
            except OSError as error:
                if delay is None or isinstance(error, FileExistsError):
                    raise UploadFailed(f"the artifact store does not take {path}: {error}") from error
                _log.warning("the artifact store does not take %s, trying again: %s", path, error)
                await asyncio.sleep(delay)
        raise AssertionError("unreachable")
