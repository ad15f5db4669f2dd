"""Looks into datasets for whoever asks: fetches file and tokenizer, and has a child do the reading."""

import asyncio
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import Message

from engine.catalogue import Catalogue
from engine.config.hub_reference import is_hub_reference
from engine.config.spec_proto import dataset_job
from engine.errors import JobError, Violation
from finetuneflow.v1 import dataset_service_pb2 as api
from services.probe.errands import Errands
from services.probe.hub_files import hub_of
from services.probe.settings import ProbeSettings
from services.probe.worker.child_input import InspectionInput

Answer = TypeVar("Answer", bound=Message)
_MAX_ROWS = 100
_DEFAULT_ROWS = 5


class Looking:
    """Answers what `DatasetService` passes through. This process reads no row itself."""

    def __init__(self, settings: ProbeSettings, models: Catalogue, errands: Errands | None = None) -> None:
        """`errands` where others have children of this process answer, too."""
        self._settings, self._models = settings, models
        self._errands = errands or Errands(settings)

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
            raise JobError(
                "INVALID_REQUEST", f"{wrong[0].field}: {wrong[0].description}", "Correct the named fields.", wrong
            )
        rows = {"num_rows": request.num_rows or _DEFAULT_ROWS, "first_row": request.first_row or 1}
        return await self._answer(request, api.PreviewDatasetResponse(), **rows)

    async def _answer(
        self, request: api.ValidateDatasetRequest | api.PreviewDatasetRequest, answer: Answer, **rows: int
    ) -> Answer:
        config = dataset_job(request)
        async with self._errands.folder() as folder:
            token = self._settings.hub_token.get_secret_value() or None
            model = await asyncio.to_thread(self._models.fetch, request.base_model, token, True)
            if is_hub_reference(request.source.dataset):
                file = await asyncio.to_thread(self._of_the_hub, request.source.dataset, folder / "source")
            else:
                file = await self._errands.fetch(request.tenant, request.dataset, folder / "source")
            out_dir, tokenizer_dir = folder / "out", model.path
            more = {"processes": self._settings.child_threads, **rows}
            spec = InspectionInput(
                kind="look", out_dir=out_dir, config=config, tokenizer_dir=tokenizer_dir, file=file, **more
            )
            return await self._errands.ask(spec, folder, answer)

    def _of_the_hub(self, dataset: str, folder: Path) -> Path:
        hub = hub_of(self._settings)
        return hub.fetch(hub.find(dataset, "source.dataset"), folder).path
