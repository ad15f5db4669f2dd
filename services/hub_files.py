"""Pins datasets of the hub to a commit and downloads them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from chassis.preparation import say
from engine.config.hub_reference import is_hub_reference
from engine.hub_datasets import HubDataset, HubDatasets, HubFile
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource
from services.attempt_inputs import download_progress
from services.hub_access import HubAccess


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
        downloaded.append(hub.fetch(file, folder / f"hub-{index}", download_progress()))
    return downloaded
