"""Pins datasets of the hub to a commit and downloads them."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from chassis.preparation import progressed, say
from chassis.store.artifact_store import ArtifactCorrupt
from engine.config.hub_reference import is_hub_reference
from engine.errors import SystemFailure
from engine.hub_datasets import HubDataset, HubDatasets, HubFile
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource
from services.attempt_inputs import RETRY_SECONDS, download_progress
from services.hub_access import HubAccess
from services.provided_files import ProvidedFile

_log = logging.getLogger(__name__)


def hub_of(access: HubAccess, max_dataset_bytes: int) -> HubDatasets:
    """Returns the dataset hub. One instance serves one job or query; a larger dataset is refused."""
    return HubDatasets(access.token, max_dataset_bytes)


def pin(sources: Iterable[tuple[str, DataSource]], hub: HubDatasets) -> list[HubFile]:
    """Writes commit and path into the name of every hub dataset among `sources`, given with the path of their `dataset`
    field. Returns these files without duplicates.

    It blocks, and raises what `HubDatasets.find` raises.
    """
    files: dict[str, HubFile] = {}
    for field, source in sources:
        if is_hub_reference(source.dataset):
            file = files.setdefault(source.dataset, hub.find(source.dataset, field))
            source.dataset = file.reference
    return list({file.reference: file for file in files.values()}.values())


def download(hub: HubDatasets, files: Sequence[HubFile], folder: Path) -> list[HubDataset]:
    """Downloads each file into its own folder below `folder`, and reports progress to the current preparation, if any.

    It blocks, and raises what `HubDatasets.fetch` raises.
    """
    downloaded = []
    for index, file in enumerate(files):
        say("fetching_data", file.reference, file.size_bytes)
        downloaded.append(hub.fetch(file, folder / f"hub-{index}", download_progress(), progressed))
    return downloaded


def provided_hub_files(
    hub: HubDatasets,
    files: Sequence[HubFile],
    folder: Path,
    sha256s: Mapping[str, str],
    on_fetched: Callable[[HubDataset], None] = lambda _dataset: None,
    retry_seconds: Sequence[float] = RETRY_SECONDS,
) -> dict[str, ProvidedFile]:
    """Returns the files for a download while the child runs, each into its own folder below `folder`: pinned reference
    → file. Those in `sha256s` must have that hash. `on_fetched` is called after each download."""

    def provided(file: HubFile, own: Path) -> ProvidedFile:
        async def fetch() -> None:
            got = await _fetched(hub, file, own, retry_seconds)
            expected = sha256s.get(file.reference) or file.sha256 or got.sha256
            if got.sha256 != expected:
                raise ArtifactCorrupt(f"{file.reference} has SHA-256 {got.sha256}, expected {expected}")
            on_fetched(got)

        return ProvidedFile(own / file.filename, file.size_bytes, fetch)

    return {file.reference: provided(file, folder / f"hub-{index}") for index, file in enumerate(files)}


async def _fetched(hub: HubDatasets, file: HubFile, folder: Path, retry_seconds: Sequence[float]) -> HubDataset:
    for delay in retry_seconds:
        try:
            return await asyncio.to_thread(hub.fetch, file, folder, download_progress(), progressed)
        except SystemFailure as error:
            _log.warning("%s cannot be downloaded, trying again: %s", file.reference, error)
        await asyncio.sleep(delay)
    return await asyncio.to_thread(hub.fetch, file, folder, download_progress(), progressed)
