"""Looks into uploaded datasets for whoever asks: fetches file and tokenizer, and has a child do the reading."""

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from chassis.artifacts import ArtifactMissing, ArtifactStore
from chassis.child import Child
from chassis.errors import Internal, NotFound
from engine.catalogue import Catalogue
from engine.config.wire import dataset_job
from engine.data.row_templates import CPU_LIMIT, killed_by_template
from engine.errors import JobError, Violation
from finetuneflow.v1 import dataset_service_pb2 as api
from services.inputs import child_environment
from services.probe.settings import ProbeSettings
from services.probe.worker.spec import LookSpec

_log = logging.getLogger(__name__)

Answer = TypeVar("Answer", bound=Message)
_AT_ONCE = 2
"""Children that look at the same time; who comes later waits."""
_MAX_ROWS = 100
_DEFAULT_ROWS = 5


class Looking:
    """Answers what `DatasetService` passes through. This process reads no row itself."""

    def __init__(self, settings: ProbeSettings, models: Catalogue) -> None:
        self._settings, self._models = settings, models
        self._store = ArtifactStore(settings.artifacts)
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def validate(self, request: api.ValidateDatasetRequest) -> api.ValidateDatasetResponse:
        """Raises JobError for a source or model that a job could not name either, NotFound for a missing file."""
        return await self._answer(request, api.ValidateDatasetResponse())

    async def preview(self, request: api.PreviewDatasetRequest) -> api.PreviewDatasetResponse:
        """Raises what `validate` does, and JobError for a file that cannot be read as a whole."""
        wrong = []
        if not 0 <= request.num_rows <= _MAX_ROWS:
            wrong.append(Violation("num_rows", f"{request.num_rows} given; must be in [1, {_MAX_ROWS}], or 0 for 5."))
        if request.first_row < 0:
            wrong.append(Violation("first_row", f"{request.first_row} given; rows are numbered from 1."))
        if wrong:
            raise JobError("INVALID_REQUEST", f"{wrong[0].field}: {wrong[0].description}", "", wrong)
        rows = {"num_rows": request.num_rows or _DEFAULT_ROWS, "first_row": request.first_row or 1}
        return await self._answer(request, api.PreviewDatasetResponse(), **rows)

    async def _answer(
        self, request: api.ValidateDatasetRequest | api.PreviewDatasetRequest, answer: Answer, **rows: int
    ) -> Answer:
        config = dataset_job(request)
        async with self._room, _folder(self._settings.home) as folder:
            token = self._settings.hub_token.get_secret_value() or None
            model = await asyncio.to_thread(self._models.fetch, request.base_model, token, True)
            dataset = request.dataset
            file = folder / "source" / Path(dataset.filename).name
            path = f"{request.tenant}/{dataset.path}"
            try:
                await asyncio.to_thread(self._store.get_file, path, file, dataset.sha256)
            except ArtifactMissing as error:
                message = f"the rows of dataset {dataset.id} are not in the artifact store"
                raise NotFound("DATASET_NOT_FOUND", message) from error
            more = {"processes": self._settings.child_threads, **rows}
            spec = LookSpec(out_dir=folder / "out", config=config, tokenizer_dir=model.path, file=file, **more)
            await self._run(folder, spec)
            return read_answer(spec.out_dir, answer)

    async def _run(self, folder: Path, spec: LookSpec) -> None:
        written = folder / "spec.json"
        written.write_text(spec.model_dump_json(), "utf-8")
        argv = [sys.executable, "-m", "services.probe.worker.look", str(written)]
        # Python finds this program where this process runs, not where the child works.
        child = await Child.start(argv, child_environment(self._settings), Path.cwd())
        try:
            async for _ in child.frames():
                pass
            status = await child.wait()
            if status == -CPU_LIMIT:
                raise killed_by_template()
            if status != 0:
                _log.error("a look into a dataset failed:\n%s", "\n".join(child.last_lines()))
                raise Internal("LOOK_FAILED", "The rows could not be looked at; the probe's log says why.")
        finally:
            child.close()


def read_answer(out_dir: Path, answer: Answer) -> Answer:
    """What the child wrote. Raises the JobError that it met."""
    refusal = out_dir / "error.json"
    if refusal.exists():
        said = json.loads(refusal.read_text("utf-8"))
        violations = [Violation(**violation) for violation in said["violations"]]
        raise JobError(said["reason"], said["message"], said["advice"], violations)
    answer.ParseFromString((out_dir / "answer.pb").read_bytes())
    return answer


@contextlib.asynccontextmanager
async def _folder(home: Path) -> AsyncIterator[Path]:
    looks = home / "work" / "looks"
    looks.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=looks, ignore_cleanup_errors=True)
    try:
        yield Path(folder.name)
    finally:
        await asyncio.to_thread(folder.cleanup)
