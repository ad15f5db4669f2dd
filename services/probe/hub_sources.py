"""Describes the datasets of a job that were downloaded from a hub."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from engine.config.hub_reference import HubReference, is_hub_reference
from engine.config.job import MAX_SOURCES
from engine.config.spec_proto import config_to_spec, source_lists
from engine.errors import JobError, Violation
from engine.hub_datasets import MAX_FILES, HubDatasets, HubFile
from engine.hub_datasets import HubDataset as DownloadedDataset
from engine.plan.resolved import Resolved
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import HubDataset, PreflightResult
from services.child_input import Strict


class HubSource(Strict):
    """A file that was downloaded from a hub. `finetuneflow.v1.HubDataset` describes the fields."""

    asked: str
    reference: str
    revision: str
    filename: str
    size_bytes: int
    sha256: str
    num_left_out: int = 0
    """Number of the dataset's files that `asked` does not stand for, because they are of other splits."""


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
            num_left_out=one.file.num_left_out,
        )
        for one in downloaded
    ]


def pinned_spec(spec: FineTuningJobSpec, hub: HubDatasets) -> tuple[FineTuningJobSpec, list[HubFile]]:
    """Returns the spec with commit and path in the name of every hub dataset, and these files without duplicates. A
    source that stands for several files becomes one for each, with its settings.

    It blocks, and raises what `HubDatasets.find_all` raises; SEVERAL_FILES too for more files than a job can have.
    """
    pinned = FineTuningJobSpec()
    pinned.CopyFrom(spec)
    found: dict[str, HubFile] = {}
    for path, sources in source_lists(pinned):
        listed: list[DataSource] = []
        for index, source in enumerate(sources):
            files = []
            if is_hub_reference(source.dataset):
                field = f"spec.{path}[{index}].dataset"
                files = hub.find_all(source.dataset, field, training=path != "evaluation_data")
                found = {file.reference: file for file in files} | found
                if len(files) > 1 and len(found) > MAX_FILES:
                    raise _too_many(f"With the {len(files)} data files of {source.dataset}", MAX_FILES, field)
            for name in [file.reference for file in files] or [source.dataset]:
                each = DataSource()
                each.CopyFrom(source)
                each.dataset = name
                listed.append(each)
        if len(listed) > MAX_SOURCES:
            raise _too_many(f"With the files that {path} stands for", MAX_SOURCES, f"spec.{path}")
        del sources[:]
        sources.extend(listed)
    return pinned, list(found.values())


def _too_many(what: str, limit: int, field: str) -> JobError:
    message = f"{what} the job has more than {limit} files."
    return JobError("SEVERAL_FILES", message, "Name folders or files with fewer.", [Violation(field, message)])


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
    """Adds a resolution for every reference that was pinned to a commit, one for all files that it stands for."""
    by_pinned = {one.reference: one for one in hub}
    number = Counter(one.asked for one in hub)
    for path, sources in source_lists(config_to_spec(resolved.config)):
        told = set()
        for index, source in enumerate(sources):
            one = by_pinned.get(source.dataset)
            if one is None or one.asked == one.reference or one.asked in told:
                continue
            left_out = f"; {one.num_left_out} files of other splits are left out" if one.num_left_out else ""
            if number[one.asked] == 1:
                field, value, what = f"{path}[{index}].dataset", one.reference, "the commit"
            else:
                told.add(one.asked)
                field, value = path, f"{number[one.asked]} files at {one.revision}"
                what = "the data files"
            reason = f"{what} of {one.asked} at the time of the preflight{left_out}"
            resolved.resolutions.append(Resolution(field=field, value=value, reason=reason))


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
