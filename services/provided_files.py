"""Provides the files of a streamed corpus to a running child, as many at once as the disk has room for."""

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from chassis.preparation import Preparation
from chassis.store.plain_files import NotPlainFile, delete_tree, file_names, open_file
from engine.config.job import JobConfig
from engine.data.requested_files import MAX_REQUEST_BYTES, REQUESTS, FileRequest
from engine.errors import JobError, Violation

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.2
_MAX_READERS: Final = 1024


@dataclass(frozen=True)
class ProvidedFile:
    """A file that can be downloaded."""

    path: Path
    """Path at which the child reads it; its folder has no other file."""
    size_bytes: int
    fetch: Callable[[], Coroutine[Any, Any, None]]
    """Downloads it; nothing is at `path` before it is complete."""


class ProvidedFiles:
    """The files of one attempt's corpus."""

    def __init__(self, files: Mapping[str, ProvidedFile], out_dir: Path, max_bytes: int, stall_seconds: float) -> None:
        """`files`: dataset id → file. They take at most `max_bytes` at once, but those that are read now are always
        there. A download that receives nothing for `stall_seconds` fails."""
        self._files, self._out_dir = files, out_dir
        self._max_bytes, self._stall_seconds = max_bytes, stall_seconds
        self._held: dict[str, None] = {}
        """Files on the disk, the least recently used first."""
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def requests(self) -> Path:
        """Folder in which the processes of the child ask for files."""
        return self._out_dir / REQUESTS

    @property
    def paths(self) -> dict[str, Path]:
        """Dataset id → file."""
        return {name: file.path for name, file in self._files.items()}

    async def provide(self) -> None:
        """Provides what is asked for, until it is cancelled. Raises what a download raises, and Stalled."""
        try:
            while True:
                await self._start_downloads(*await asyncio.to_thread(self._asked))
                if self._running:
                    await asyncio.wait(
                        self._running.values(), timeout=_POLL_SECONDS, return_when=asyncio.FIRST_COMPLETED
                    )
                else:
                    await asyncio.sleep(_POLL_SECONDS)
                for name in [name for name, task in self._running.items() if task.done()]:
                    self._running.pop(name).result()
                    self._held[name] = None
        finally:
            for task in self._running.values():
                task.cancel()
            if self._running:
                await asyncio.wait(self._running.values())

    async def _start_downloads(self, now: Sequence[str], soon: Sequence[str]) -> None:
        """Starts to download what is read now and, if nothing else is being downloaded, the first that comes next."""
        for name in now:
            if name in self._held:
                del self._held[name]
                self._held[name] = None
        missing = [name for name in now if name not in self._held and name not in self._running]
        for name in missing:
            # A file that comes later has to be complete before it can be deleted.
            if await self._make_room(name, now, soon) or set(self._running) <= set(now):
                self._start(name)
        if missing or self._running:
            return
        for at, name in enumerate(soon):
            if name not in self._held:
                if await self._make_room(name, [*now, *soon[:at]], soon):
                    self._start(name)
                return

    async def _make_room(self, wanted: str, kept: Sequence[str], soon: Sequence[str]) -> bool:
        """Deletes files until there is room for one more: none of those in `kept`, and those in `soon` last. Returns
        False if that is not enough."""
        used = sum(self._files[name].size_bytes for name in (*self._held, *self._running))
        excess = used + self._files[wanted].size_bytes - self._max_bytes
        free = [name for name in self._held if name not in kept]
        if excess > sum(self._files[name].size_bytes for name in free):
            return False
        for name in sorted(free, key=lambda name: -soon.index(name) if name in soon else -len(soon)):
            if excess <= 0:
                break
            excess -= self._files[name].size_bytes
            del self._held[name]
            await asyncio.to_thread(delete_tree, self._files[name].path.parent)
        return True

    def _start(self, name: str) -> None:
        # No phase is reported: the child is in one of its own.
        preparation = Preparation(lambda _phase: None, self._stall_seconds, contextlib.ExitStack())
        work = preparation.run(self._files[name].fetch(), self._stall_seconds)
        self._running[name] = asyncio.create_task(work, name=f"fetch-{name}")

    def _asked(self) -> tuple[list[str], list[str]]:
        """Returns the files that the child's processes read now, and those that come next."""
        requests: list[FileRequest] = []
        with contextlib.suppress(FileNotFoundError, NotPlainFile):
            names = [name for name in file_names(self._out_dir, REQUESTS) if name.endswith(".json")]
            requests = [self._request(name) for name in names[:_MAX_READERS]]
        now = dict.fromkeys(name for request in requests for name in request.now if name in self._files)
        soon = dict.fromkeys(name for request in requests for name in request.soon if name in self._files)
        return list(now), [name for name in soon if name not in now]

    def _request(self, name: str) -> FileRequest:
        try:
            with open_file(self._out_dir, f"{REQUESTS}/{name}") as file:
                return FileRequest.model_validate_json(file.read(MAX_REQUEST_BYTES))
        except (OSError, NotPlainFile, ValidationError) as error:
            _log.warning("a request of the child for files, %s, cannot be read: %s", name, error)
            return FileRequest(now=[], soon=[])


def room_for_corpus(setting: int, folder: Path, slots: int) -> int:
    """Returns the bytes that the files of a corpus may have in `folder`: the operator's setting or, if that is 0, half
    of what is free, divided by the attempts that run at once. The rest is for what a training writes."""
    return setting or shutil.disk_usage(folder).free // 2 // slots


def streams(config: JobConfig, files: Mapping[str, ProvidedFile]) -> list[dict[str, ProvidedFile]]:
    """Returns the streams in which those of the files that are trained on are read, one for each weight: path in the
    spec → file."""
    found: dict[float, dict[str, ProvidedFile]] = {}
    for index, source in enumerate(config.training_data):
        if source.dataset in files:
            found.setdefault(source.weight, {})[f"training_data[{index}]"] = files[source.dataset]
    return list(found.values())


def check_room(streams: Sequence[Mapping[str, ProvidedFile]], max_bytes: int, readers: int, setting: str) -> None:
    """Raises JobError("DATASET_TOO_LARGE") if the files that are read at once do not fit into `max_bytes`, which
    `setting` limits. Each process reads one file of each stream; of several, some may be in the next one already."""
    largest = [max(files.items(), key=lambda file: file[1].size_bytes) for files in streams]
    needed = sum(file.size_bytes for _, file in largest) * min(readers, 2)
    if needed <= max_bytes:
        return
    place, file = max(largest, key=lambda file: file[1].size_bytes)
    several = f", as {readers} processes may read two files of each weight" if readers > 1 else ""
    message = (
        f"{place}: {file.path.name} has {file.size_bytes:,} bytes. The files of the corpus that are read at once have "
        f"up to {needed:,} bytes{several}; the limit on this machine is {max_bytes:,} bytes."
    )
    fewer = "train with one process, " if readers > 1 and needed <= 2 * max_bytes else ""
    advice = f"Divide it into smaller files, {fewer}or ask the operator to make room on the disk or to raise {setting}."
    raise JobError("DATASET_TOO_LARGE", message, advice, [Violation(f"spec.{place}.dataset", message)])
