"""Describes the datasets of a job that were downloaded from a hub."""

import json
from collections.abc import Sequence
from pathlib import Path

from engine.config.hub_reference import HubReference
from engine.config.spec_proto import config_to_spec, data_sources
from engine.hub_datasets import HubDataset as DownloadedDataset
from engine.hub_datasets import HubDatasets, HubFile
from engine.plan.resolved import Resolved
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import HubDataset, PreflightResult
from services.child_input import Strict
from services.hub_files import pin


class HubSource(Strict):
    """A file that was downloaded from a hub. `finetuneflow.v1.HubDataset` describes the fields."""

    asked: str
    reference: str
    revision: str
    filename: str
    size_bytes: int
    sha256: str


def hub_sources(downloaded: Sequence[DownloadedDataset]) -> list[HubSource]:
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


def pinned_spec(spec: FineTuningJobSpec, hub: HubDatasets) -> tuple[FineTuningJobSpec, list[HubFile]]:
    """Returns the spec with commit and path in the name of every hub dataset, and these files without duplicates.

    It blocks, and raises what `HubDatasets.find` raises.
    """
    pinned = FineTuningJobSpec()
    pinned.CopyFrom(spec)
    return pinned, pin(data_sources(pinned), hub)


class HashNotes:
    """Hashes of files of the hub that are downloaded while the child runs, noted in the folder of the attempt."""

    def __init__(self, workdir: Path) -> None:
        self._file = workdir / "hub-sha256.json"

    def add(self, downloaded: DownloadedDataset) -> None:
        """Notes the hash of a file."""
        noted = {**self._read(), downloaded.file.reference: downloaded.sha256}
        self._file.write_text(json.dumps(noted), "utf-8")

    def complete(self, result: PreflightResult) -> None:
        """Fills the hashes into a result that does not have them yet."""
        noted = self._read()
        for dataset in result.hub_datasets:
            dataset.sha256 = dataset.sha256 or noted.get(dataset.pinned, "")

    def _read(self) -> dict[str, str]:
        return dict(json.loads(self._file.read_text("utf-8"))) if self._file.exists() else {}


def note_commits(resolved: Resolved, hub: Sequence[HubSource]) -> None:
    """Adds a resolution for every dataset that was pinned to a commit."""
    asked = {one.reference: one.asked for one in hub}
    for path, source in data_sources(config_to_spec(resolved.config)):
        before = asked.get(source.dataset, source.dataset)
        if before != source.dataset:
            field = path.removeprefix("spec.")
            reason = f"the commit of {before} at the time of the preflight"
            resolved.resolutions.append(Resolution(field=field, value=source.dataset, reason=reason))


def hub_datasets(hub: Sequence[HubSource]) -> list[HubDataset]:
    """Converts the sources to the messages of a PreflightResult."""
    return [
        HubDataset(
            asked=one.asked,
            pinned=one.reference,
            revision=one.revision,
            filename=one.filename,
            size_bytes=one.size_bytes,
            sha256=one.sha256,
        )
        for one in hub
    ]
