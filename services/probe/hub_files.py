"""The datasets of a job that lie on a hub: pinned to a commit in its spec, and brought here."""

from collections.abc import Sequence
from pathlib import Path

from chassis.preparation import say
from engine.config.hub_reference import HubReference, is_hub_reference
from engine.config.spec_proto import data_sources
from engine.hub_datasets import HubDataset, HubDatasets, HubFile
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from services.inputs import listening
from services.probe.settings import ProbeSettings
from services.probe.worker.child_input import HubSource


def hub_of(settings: ProbeSettings) -> HubDatasets:
    """Asked once for one job or one question."""
    return HubDatasets(settings.hub_token.get_secret_value(), settings.max_dataset_bytes)


def pin(spec: FineTuningJobSpec, hub: HubDatasets) -> tuple[FineTuningJobSpec, list[HubFile]]:
    """The spec with commit and path in every name of a hub's dataset, and these files, each once. Blocks, and raises
    what `HubDatasets.find` raises."""
    pinned = FineTuningJobSpec()
    pinned.CopyFrom(spec)
    files: dict[str, HubFile] = {}
    for field, source in data_sources(pinned):
        if is_hub_reference(source.dataset):
            file = files.setdefault(source.dataset, hub.find(source.dataset, field))
            source.dataset = file.reference
    return pinned, list({file.reference: file for file in files.values()}.values())


def bring(hub: HubDatasets, files: Sequence[HubFile], folder: Path) -> list[HubDataset]:
    """Downloads them into folders of their own, below `folder`. Blocks; says so where a preparation is on its way."""
    brought = []
    for index, file in enumerate(files):
        say("fetching_data", file.reference, file.size_bytes)
        brought.append(hub.fetch(file, folder / f"hub-{index}", listening()))
    return brought


def hub_sources(brought: Sequence[HubDataset]) -> list[HubSource]:
    """For the child, which reports them."""
    return [
        HubSource(
            asked=one.file.asked,
            reference=one.file.reference,
            revision=HubReference.parse(one.file.reference).revision,
            filename=one.path.name,
            size_bytes=one.file.size_bytes,
            sha256=one.sha256,
        )
        for one in brought
    ]
