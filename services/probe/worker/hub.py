"""What is told of the datasets that came from a hub."""

from collections.abc import Sequence

from engine.config.spec_proto import config_to_spec, data_sources
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.stage_result_pb2 import HubDataset
from services.probe.worker.child_input import HubSource
from services.probe.worker.resolve import Resolved


def note_commits(resolved: Resolved, hub: Sequence[HubSource]) -> None:
    """Says of every dataset that was pinned what it was before."""
    asked = {one.reference: one.asked for one in hub}
    for path, source in data_sources(config_to_spec(resolved.config)):
        before = asked.get(source.dataset, source.dataset)
        if before != source.dataset:
            field = path.removeprefix("spec.")
            reason = f"what {before} was when preflight looked"
            resolved.resolutions.append(Resolution(field=field, value=source.dataset, reason=reason))


def hub_datasets(hub: Sequence[HubSource]) -> list[HubDataset]:
    """For the result."""
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
