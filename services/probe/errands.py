"""Questions that a child of this process answers: it reads rows and holds a tokenizer, which a serving process never
does. Each answers one question and is gone. After the first one, another waits with its imports done."""

import asyncio
import contextlib
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from chassis.child.child_process import ChildCommand
from chassis.child.spare import Spare, SpareCommand
from chassis.errors import Internal, NotFound
from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from engine.data.template_limits import CPU_LIMIT, killed_by_template
from finetuneflow.v1.dataset_pb2 import Dataset
from services.child_input import ChildInput
from services.inputs import child_environment
from services.probe.dataset_cache import DatasetCache, sweep
from services.probe.settings import ProbeSettings
from services.probe.worker.answers import read_answer

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=Message)
_PROGRAM = (sys.executable, "-m", "services.probe.worker.errand")
_AT_ONCE = 2
"""Children at the same time; who comes later waits."""


class Errands:
    """The children of this process that answer questions."""

    def __init__(self, settings: ProbeSettings) -> None:
        self._settings = settings
        self._store = ArtifactStore(settings.artifacts)
        self._looks = settings.home / "work" / "looks"
        self._looks.mkdir(parents=True, exist_ok=True)
        sweep(self._looks)
        self._kept = DatasetCache(settings.home / "work" / "datasets", settings.kept_dataset_bytes)
        self._room = asyncio.Semaphore(_AT_ONCE)
        self._env = child_environment(settings)
        # Python finds this program where this process runs, not where the child works.
        self._cwd = Path.cwd()
        self._spare = Spare(SpareCommand(_PROGRAM, self._env) if settings.warm_spare else None, self._cwd)

    @contextlib.asynccontextmanager
    async def folder(self) -> AsyncIterator[Path]:
        """A new one for what a child reads and writes; waits until there is room for one more child."""
        async with self._room:
            folder = tempfile.TemporaryDirectory(dir=self._looks, ignore_cleanup_errors=True)
            try:
                yield Path(folder.name)
            finally:
                await asyncio.to_thread(folder.cleanup)

    async def fetch(self, tenant: str, dataset: Dataset, folder: Path) -> Path:
        """The dataset's file, whose name ends as it was uploaded. NotFound."""
        file = folder / Path(dataset.filename).name
        try:
            await asyncio.to_thread(self._kept.bring, self._store, f"{tenant}/{dataset.path}", dataset.sha256, file)
        except ArtifactMissing as error:
            message = f"the rows of dataset {dataset.id} are not in the artifact store"
            raise NotFound("DATASET_NOT_FOUND", message) from error
        return file

    async def ask(self, spec: ChildInput, folder: Path, answer: Answer) -> Answer:
        """`answer`, filled in by a child. Raises the JobError that it met."""
        written = folder / "spec.json"
        written.write_text(spec.model_dump_json(), "utf-8")
        # The next one is warmed up when this one has ended: both at once would wait for the same processors.
        command = ChildCommand([*_PROGRAM, str(written)], spec.out_dir, self._env, on_cpu=True)
        child = await self._spare.start(command, self._cwd)
        try:
            async for _ in child.frames():
                pass
            status = await child.wait()
            if status == -CPU_LIMIT:
                raise killed_by_template()
            if status != 0:
                _log.error("a child without an answer:\n%s", "\n".join(child.last_lines()))
                raise Internal("LOOK_FAILED", "The rows could not be looked at; the probe's log says why.")
        finally:
            child.close()
            # A probe that nobody asks keeps none.
            self._spare.open()
        return read_answer(spec.out_dir, answer)

    async def close(self) -> None:
        """Ends the one that waits."""
        await self._spare.close()
