"""Describes the datasets of a job that were downloaded from a hub."""

from collections.abc import Sequence

from engine.config.spec_proto import config_to_spec, data_sources
from engine.plan.resolved import Resolved
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.stage_result_pb2 import HubDataset
from services.child_input import Strict


class HubSource(Strict):
    """A file that was downloaded from a hub. `finetuneflow.v1.HubDataset` describes the fields."""

    asked: str
    reference: str
    revision: str
    filename: str
    size_bytes: int
    sha256: str


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
