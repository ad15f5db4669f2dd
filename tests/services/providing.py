"""A supervisor's part in the tests of children that ask for files: provides those of a real artifact store."""

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import provided_datasets
from services.provided_files import ProvidedFile, ProvidedFiles


class Providing:
    """Provides files from a thread, as a context manager, and records what it did."""

    def __init__(self, files: Mapping[str, Path], folder: Path, out_dir: Path, max_bytes: int) -> None:
        """`files`: dataset id → file, stored first; `folder` is that of the attempt."""
        self.store = ArtifactStore((folder / "artifacts").as_uri())
        assignment = Assignment(tenant="default")
        for name, file in files.items():
            path = f"datasets/{name}/{file.name}"
            stored = self.store.put_file(file, f"default/{path}")
            assignment.datasets.append(
                Dataset(id=name, filename=file.name, path=path, sha256=stored.sha256, size_bytes=stored.size_bytes)
            )
        self._sources = folder / "sources"
        self.fetched: list[str] = []
        self.peak_bytes = 0
        self.error: BaseException | None = None
        provided = provided_datasets(assignment, self.store, folder, set(files), retry_seconds=())
        self.files = ProvidedFiles(
            {name: self._recorded(name, file) for name, file in provided.items()}, out_dir, max_bytes, 60.0
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)
        self._task: asyncio.Task[None] | None = None

    def _recorded(self, name: str, file: ProvidedFile) -> ProvidedFile:
        async def fetch() -> None:
            await file.fetch()
            self.fetched.append(name)
            found = sum(each.stat().st_size for each in self._sources.rglob("*") if each.is_file())
            self.peak_bytes = max(self.peak_bytes, found)

        return replace(file, fetch=fetch)

    def _run(self) -> None:
        self._task = self._loop.create_task(self.files.provide())
        try:
            self._loop.run_until_complete(self._task)
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.error = error

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._task:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._loop.close()
