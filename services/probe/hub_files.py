"""Pins the hub datasets of a job to a commit and downloads them."""

from collections.abc import Sequence
from pathlib import Path

from chassis.preparation import say
from engine.config.hub_reference import HubReference, is_hub_reference
from engine.config.spec_proto import data_sources
from engine.hub_datasets import HubDataset, HubDatasets, HubFile
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from services.attempt_inputs import download_progress
from services.hub_access import HubAccess
from services.probe.hub_sources import HubSource
from services.probe.settings import ProbeSettings


def hub_of(settings: ProbeSettings, access: HubAccess) -> HubDatasets:
    """Returns the dataset hub, with the limits of the settings. One instance serves one job or query."""
    return HubDatasets(access.token, settings.max_dataset_bytes)


def pin(spec: FineTuningJobSpec, hub: HubDatasets) -> tuple[FineTuningJobSpec, list[HubFile]]:
    """Returns the spec with commit and path in the name of every hub dataset, and these files without duplicates.

    It blocks, and raises what `HubDatasets.find` raises.
    """
    pinned = FineTuningJobSpec()
    pinned.CopyFrom(spec)
    files: dict[str, HubFile] = {}
    for field, source in data_sources(pinned):
        if is_hub_reference(source.dataset):
            file = files.setdefault(source.dataset, hub.find(source.dataset, field))
            source.dataset = file.reference
    return pinned, list({file.reference: file for file in files.values()}.values())


def download(hub: HubDatasets, files: Sequence[HubFile], folder: Path) -> list[HubDataset]:
    """Downloads each file into its own folder below `folder`, and reports progress to the current preparation, if any.

    It blocks, and raises what `HubDatasets.fetch` raises.
    """
    downloaded = []
    for index, file in enumerate(files):
        say("fetching_data", file.reference, file.size_bytes)
        downloaded.append(hub.fetch(file, folder / f"hub-{index}", download_progress()))
    return downloaded


def hub_sources(downloaded: Sequence[HubDataset]) -> list[HubSource]:
    """Describes the downloaded files for the child, which reports them."""
    return [
        HubSource(
            asked=one.file.asked,
            reference=one.file.reference,
            revision=HubReference.parse(one.file.reference).revision,
            filename=one.path.name,
            size_bytes=one.file.size_bytes,
            sha256=one.sha256,
        )
        for one in downloaded
    ]
