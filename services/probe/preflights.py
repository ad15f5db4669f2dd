"""Stage 1 of a job that does not exist, for whoever asks: fetches files and tokenizer, and has a child do the rest."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from chassis.store.artifact_store import on_disk_of
from engine.catalogue import Catalogue
from engine.config.hub_reference import is_hub_reference
from engine.config.job import job_config, unsupported
from engine.config.spec_proto import spec_to_dict
from engine.errors import JobError
from finetuneflow.v1 import probe_service_pb2 as api
from services.child_input import ModelFiles
from services.hardware import read_hardware
from services.probe.errands import Errands
from services.probe.hub_files import bring, hub_of, hub_sources, pin
from services.probe.settings import ProbeSettings
from services.probe.worker.child_input import DryRunInput


class Preflights:
    """Answers `ProbeService.PreflightFineTuningJob`. This process reads no row itself."""

    def __init__(self, settings: ProbeSettings, models: Catalogue, errands: Errands) -> None:
        self._settings, self._models, self._errands = settings, models, errands

    async def preflight(self, request: api.PreflightFineTuningJobRequest) -> api.PreflightFineTuningJobResponse:
        """Raises JobError for settings and models that leave nothing to check, SystemFailure for a hub that cannot be
        reached, NotFound for a missing file."""
        async with self._errands.folder() as folder:
            sources = {
                dataset.id: await self._errands.fetch(request.tenant, dataset, folder / "sources" / dataset.id)
                for dataset in request.datasets
            }
            spec = await asyncio.to_thread(dry_run_spec, request, sources, folder / "out", self._settings, self._models)
            return await self._errands.ask(spec, folder, api.PreflightFineTuningJobResponse())


def dry_run_spec(
    request: api.PreflightFineTuningJobRequest,
    sources: Mapping[str, Path],
    out_dir: Path,
    settings: ProbeSettings,
    models: Catalogue,
) -> DryRunInput:
    """What the child needs. Blocks: it reads the headers of the weights, and the hub for a model that is not here and
    for its datasets, which come to lie beside `out_dir`. Raises what `Catalogue.fetch` and `HubDatasets` raise,
    JobError: INVALID_CONFIG, NOT_IMPLEMENTED, DATASET_NOT_FOUND for an uploaded dataset without a file in `sources`."""
    hub = hub_of(settings)
    config = job_config(spec_to_dict(request.spec))
    if missing := unsupported(config):
        fields = ", ".join(violation.field for violation in missing)
        raise JobError("NOT_IMPLEMENTED", f"not built yet: {fields}", "Leave them out.", missing)
    uploaded = [name for name in config.dataset_ids() if not is_hub_reference(name)]
    if unknown := [name for name in uploaded if name not in sources]:
        raise JobError(
            "DATASET_NOT_FOUND",
            f"A probe knows no dataset {unknown[0]!r}.",
            "Ask the gateway, which knows what was uploaded.",
        )
    token = settings.hub_token.get_secret_value() or None
    pinned, files = pin(request.spec, hub)
    local = models.fetch(request.spec.base_model, token, tokenizer_only=True)
    described = models.describe(request.spec.base_model, token)
    own = None if request.HasField("hardware") else read_hardware(settings.node_id, settings.home)
    brought = bring(hub, files, out_dir.with_name("hub-sources"))
    return DryRunInput(
        out_dir=out_dir,
        config=spec_to_dict(pinned),
        model=ModelFiles(**asdict(local)),
        architecture=dict(described.config),
        shapes=dict(described.shapes),
        missing_bytes=described.missing_bytes,
        processes=settings.child_threads,
        sources={**sources, **{one.file.reference: one.path for one in brought}},
        hub=hub_sources(brought),
        hardware=_values(own or request.hardware),
        holds_artifacts=on_disk_of(settings.artifacts, settings.home),
        observed=[_values(each) for each in request.observed],
        prices=settings.prices,
    )


def _values(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)
