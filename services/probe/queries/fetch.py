"""Fetches what a query needs from the model hub, the dataset hub and this machine, before a child runs it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from chassis.errors import Unimplemented
from chassis.store.artifact_store import on_disk_of
from engine.catalogue import Catalogue
from engine.config.hub_reference import is_hub_reference
from engine.config.job import job_config, unsupported
from engine.config.spec_proto import dataset_job, spec_to_dict
from engine.data.endings import check_file
from engine.errors import JobError, Violation
from engine.hub_cache import ModelUses
from finetuneflow.v1 import dataset_service_pb2, probe_service_pb2
from services.child_input import ModelFiles
from services.hardware import read_hardware
from services.hub_access import HubAccess
from services.hub_files import download, hub_of
from services.probe.hub_sources import hub_sources, pinned_spec
from services.probe.queries.query import Fetched, PreflightFacts, ProbeQuery
from services.probe.settings import ProbeSettings

_MAX_ROWS = 100


def fetch(
    query: ProbeQuery, settings: ProbeSettings, catalogue: Catalogue, access: HubAccess, uses: ModelUses
) -> ProbeQuery:
    """Returns the query with `fetched` set, and with the files of hub datasets, which it downloads beside `out_dir`.

    The base model stays on this machine until `uses` is closed. It blocks. Raises JobError for a request that leaves
    nothing to run, Unimplemented for fields that are not available yet, and what `Catalogue.fetch`,
    `Catalogue.describe` and `HubDatasets` raise: JobError, or SystemFailure if a hub cannot be reached.
    """
    start = query.request.get("spec", {}).get("start_from")
    for name, path in query.files.items():
        # A gateway refuses them when they are uploaded; without a server, this is the first look at them.
        if name != start:
            check_file(path.name, path.stat().st_size, path.name)
    match query.method:
        case "ValidateDataset":
            return _for_dataset(
                query, query.parsed(dataset_service_pb2.ValidateDatasetRequest()), settings, catalogue, access, uses
            )
        case "PreviewDataset":
            preview = query.parsed(dataset_service_pb2.PreviewDatasetRequest())
            _check_rows(preview)
            return _for_dataset(query, preview, settings, catalogue, access, uses)
        case "CountTokens":
            counted = query.parsed(probe_service_pb2.EstimateResourcesRequest())
            job_config(spec_to_dict(counted.spec))
            return query.model_copy(
                update={"fetched": _tokenizer(counted.spec.base_model, settings, catalogue, access, uses)}
            )
        case "PreflightFineTuningJob":
            return _for_preflight(query, settings, catalogue, access, uses)
    return query


def _tokenizer(
    base_model: str, settings: ProbeSettings, catalogue: Catalogue, access: HubAccess, uses: ModelUses
) -> Fetched:
    local = catalogue.fetch(base_model, access.token, tokenizer_only=True, uses=uses)
    return Fetched(model=ModelFiles(**asdict(local)), processes=settings.child_threads, limits=settings.query_limits)


def _for_dataset(
    query: ProbeQuery,
    request: dataset_service_pb2.ValidateDatasetRequest | dataset_service_pb2.PreviewDatasetRequest,
    settings: ProbeSettings,
    catalogue: Catalogue,
    access: HubAccess,
    uses: ModelUses,
) -> ProbeQuery:
    job_config(dataset_job(request))
    fetched = _tokenizer(request.base_model, settings, catalogue, access, uses)
    name = request.source.dataset
    if not is_hub_reference(name):
        return query.model_copy(update={"fetched": fetched})
    hub = hub_of(access, settings.max_dataset_bytes)
    file = hub.fetch(hub.find(name, "source.dataset"), _hub_folder(query)).path
    return query.model_copy(update={"fetched": fetched, "files": {**query.files, name: file}})


def _for_preflight(
    query: ProbeQuery, settings: ProbeSettings, catalogue: Catalogue, access: HubAccess, uses: ModelUses
) -> ProbeQuery:
    request = query.parsed(probe_service_pb2.PreflightFineTuningJobRequest())
    config = job_config(spec_to_dict(request.spec))
    if missing := unsupported(config):
        fields = ", ".join(violation.field for violation in missing)
        message = f"These fields are not available yet: {fields}. Remove or change them."
        raise Unimplemented("NOT_IMPLEMENTED", message, missing)
    uploaded = [name for name in config.dataset_ids() if not is_hub_reference(name)]
    if unknown := [name for name in uploaded if name not in query.files]:
        raise JobError(
            "DATASET_NOT_FOUND",
            f"The probe got no file for dataset {unknown[0]!r}.",
            "Ask the gateway, which knows the uploaded datasets.",
        )
    hub = hub_of(access, settings.max_dataset_bytes)
    pinned, hub_files = pinned_spec(request.spec, hub)
    request.spec.CopyFrom(pinned)
    fetched = _tokenizer(request.spec.base_model, settings, catalogue, access, uses)
    described = catalogue.describe(request.spec.base_model, access.token)
    own = None if request.HasField("hardware") else read_hardware(settings.node_id, settings.home)
    downloaded = download(hub, hub_files, _hub_folder(query))
    facts = PreflightFacts(
        config=dict(described.config),
        shapes=dict(described.shapes),
        missing_bytes=described.missing_bytes,
        hub=hub_sources(downloaded),
        hardware=_values(own or request.hardware),
        holds_artifacts=on_disk_of(settings.artifacts, settings.home),
        prices=settings.prices,
    )
    files = {**query.files, **{one.file.reference: one.path for one in downloaded}}
    update = {"request": _values(request), "files": files, "fetched": fetched.model_copy(update={"preflight": facts})}
    return query.model_copy(update=update)


def _check_rows(request: dataset_service_pb2.PreviewDatasetRequest) -> None:
    wrong = []
    if not 0 <= request.num_rows <= _MAX_ROWS:
        wrong.append(Violation("num_rows", f"{request.num_rows} is outside [1, {_MAX_ROWS}]; 0 means the default."))
    if request.first_row < 0:
        wrong.append(Violation("first_row", f"{request.first_row} is negative; rows are numbered from 1."))
    if wrong:
        raise JobError(
            "INVALID_REQUEST", f"{wrong[0].field}: {wrong[0].description}", "Correct the named fields.", wrong
        )


def _hub_folder(query: ProbeQuery) -> Path:
    return query.out_dir.with_name("hub-sources")


def _values(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)
