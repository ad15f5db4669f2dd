"""Prepares stage 1: fetches the datasets and the base model for the preflight child."""

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.child.spare import SpareCommand
from chassis.store.artifact_store import ArtifactStore, on_disk_of
from engine.catalogue import Catalogue
from engine.config.job import JobConfig
from engine.config.spec_proto import spec_to_dict
from engine.config.start import TrainedData
from engine.data.content_key import content_key
from engine.errors import JobError
from engine.plan.resolve import resolve_length
from engine.plan.resolved import Resolved
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import (
    check_base_of_start,
    child_command,
    child_environment,
    dataset_files,
    fetched_model,
    job_configuration,
    reusable_shards,
)
from services.child_input import ModelFiles
from services.hardware import read_hardware
from services.hub_access import job_access
from services.hub_files import download, hub_of
from services.probe.hub_sources import hub_sources, pinned_spec
from services.probe.settings import ProbeSettings
from services.probe.worker.child_input import PreflightInput


class PreflightStage:
    """Runs `services.probe.worker`."""

    service = "probe"

    def __init__(self, settings: ProbeSettings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError for a base model or hub dataset that cannot be used, SystemFailure for an unreachable hub."""
        hardware = assignment.hardware
        if not assignment.HasField("hardware"):
            hardware = await asyncio.to_thread(read_hardware, self._settings.node_id, self._settings.home)
        access = job_access(self._settings, assignment, secrets)
        hub = hub_of(access, self._settings.max_dataset_bytes)
        pinned, files = await asyncio.to_thread(pinned_spec, assignment.merged_spec, hub)
        model = await fetched_model(self._catalogue, assignment.merged_spec.base_model, access)
        check_base_of_start(assignment, model)
        sources = await dataset_files(assignment, store, workdir)
        downloaded = await asyncio.to_thread(download, hub, files, workdir / "sources")
        sha256s = {dataset.id: dataset.sha256 for dataset in assignment.datasets}
        sha256s |= {one.file.reference: one.sha256 for one in downloaded}
        config = job_configuration(pinned)
        out_dir = workdir / "out"
        key = await asyncio.to_thread(_content_key, config, sha256s, model)
        child_input = PreflightInput(
            config=config,
            given=spec_to_dict(assignment.spec),
            model=model,
            sources=sources | {one.file.reference: one.path for one in downloaded},
            hub=hub_sources(downloaded),
            content_key=key,
            # The child moves them, so they are where it may write.
            shards=await reusable_shards(assignment, store, out_dir, key),
            out_dir=out_dir,
            trained_data=[TrainedData(list(data.datasets), data.split_key) for data in assignment.start.trained_data],
            processes=self._settings.child_threads,
            limits=self._settings.preflight_limits,
            node_id=self._settings.node_id,
            hardware=MessageToDict(hardware, preserving_proto_field_name=True),
            prices=self._settings.prices,
            holds_artifacts=on_disk_of(self._settings.artifacts, self._settings.home),
        )
        return child_command(
            self._settings, child_input, workdir, [model.path, self._settings.prices], limits=child_input.limits
        )

    def spare(self) -> SpareCommand:
        """Returns how to start a child that completes the imports of a preflight."""
        return SpareCommand([sys.executable, "-m", "services.probe.worker"], child_environment(self._settings))


def _content_key(config: JobConfig, sha256s: Mapping[str, str], model: ModelFiles) -> str:
    """Returns the key by which token shards of an earlier job are found; empty for a job that the child will refuse."""
    try:
        resolved = Resolved(config)
        resolve_length(resolved, model.context_length, asked=False)
        return content_key(resolved.config, model.path, sha256s)
    except (JobError, KeyError):
        return ""
