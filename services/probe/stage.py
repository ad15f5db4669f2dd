"""Stage 1, the supervisor's part: brings the datasets and the base model to the preflight child."""

import asyncio
import sys
from dataclasses import asdict
from pathlib import Path

from google.protobuf.json_format import MessageToDict

from chassis.artifacts import ArtifactStore
from chassis.child import ChildCommand
from engine.catalogue import Catalogue
from engine.config.wire import spec_to_dict
from finetuneflow.v1.work_pb2 import Assignment
from services.inputs import child_environment
from services.probe.hardware import read_hardware
from services.probe.settings import ProbeSettings
from services.probe.worker.spec import ModelFiles, PreflightSpec


class PreflightStage:
    """Runs `services.probe.worker`."""

    service = "probe"

    def __init__(self, settings: ProbeSettings, models: Catalogue) -> None:
        self._settings = settings
        self._models = models

    async def prepare(self, assignment: Assignment, workdir: Path, store: ArtifactStore) -> ChildCommand:
        """Raises JobError for a base model that cannot be had."""
        sources: dict[str, Path] = {}
        for dataset in assignment.datasets:
            # Its ending tells the child how to read it.
            file = workdir / "sources" / dataset.id / Path(dataset.filename).name
            path = f"{assignment.tenant}/{dataset.path}"
            await asyncio.to_thread(store.get_file, path, file, dataset.sha256)
            sources[dataset.id] = file
        token = self._settings.hub_token.get_secret_value()
        local = await asyncio.to_thread(self._models.fetch, assignment.spec.base_model, token or None)
        hardware = await asyncio.to_thread(read_hardware, self._settings.node_id, self._settings.home)
        spec = PreflightSpec(
            config=spec_to_dict(assignment.spec),
            model=ModelFiles(**asdict(local)),
            sources=sources,
            out_dir=workdir / "out",
            node_id=self._settings.node_id,
            hardware=MessageToDict(hardware, preserving_proto_field_name=True),
        )
        file = workdir / "spec.json"
        file.write_text(spec.model_dump_json(indent=1), "utf-8")
        return ChildCommand(
            argv=[sys.executable, "-m", "services.probe.worker", str(file)],
            env=child_environment(self._settings),
            out_dir=spec.out_dir,
        )
