"""One of the four services with a child that needs no torch: `python -m tests.chaos.worker trainer`.

Everything but the stage is the product's: settings, process, stage worker, inputs from the artifact store.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from chassis.attempt.stage_worker import StageWorker
from chassis.child.child_process import ChildCommand
from chassis.server.grpc_server import Mount
from chassis.store.artifact_store import ArtifactStore
from engine.config.job import chosen
from engine.config.spec_proto import config_to_spec, resolved_config
from finetuneflow.v1 import trainer_service_pb2, trainer_service_pb2_grpc
from finetuneflow.v1.event_pb2 import ConfigResolved, Event
from finetuneflow.v1.work_pb2 import Assignment
from services import process
from services.attempt_inputs import best_checkpoint, newest_checkpoint, token_shards
from services.evaluator.settings import EvaluatorSettings
from services.exporter.settings import ExporterSettings
from services.probe.settings import ProbeSettings
from services.settings import ServiceSettings
from services.trainer.servicer import TrainerServicer
from services.trainer.settings import TrainerSettings
from services.trainer.stage import TrainingStage
from tests.chaos.child import ChildInput

STEP_SECONDS = 0.025
_CHILD = Path(__file__).with_name("child.py")


class ChainStage:
    """Brings the child what the real stage brings, but for the model."""

    def __init__(self, service: str) -> None:
        self.service = service

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: object
    ) -> ChildCommand:
        preflight = assignment.resolved_spec.ByteSize() == 0
        config = resolved_config(assignment.merged_spec if preflight else assignment.resolved_spec)
        spec = ChildInput(
            stage={"probe": "preflight", "trainer": "training", "evaluator": "evaluation", "exporter": "export"}[
                self.service
            ],
            seed=config.seed,
            total_steps=config.hyperparameters.max_steps or 1,
            save_steps=chosen(config.hyperparameters.save_steps),
            step_seconds=STEP_SECONDS,
            out_dir=workdir / "out",
        )
        if self.service == "probe":
            resolved = ConfigResolved(resolved_spec=config_to_spec(config))
            spec.config = base64.b64encode(resolved.SerializeToString()).decode()
        elif self.service == "trainer":
            await token_shards(assignment, store, workdir)
            found, _ = await newest_checkpoint(assignment, store, workdir)
            if found:
                spec.checkpoint, spec.manifest_sha256 = found.path, found.manifest_sha256
        else:
            spec.checkpoint = (await best_checkpoint(assignment, store, workdir)).path
            spec.final_train_loss = assignment.training.final_train_loss
        file = workdir / "input.json"
        file.write_text(spec.model_dump_json())
        return ChildCommand([sys.executable, str(_CHILD), str(file)], spec.out_dir, reads=[_CHILD])


class ChainTraining(ChainStage):
    """The chosen checkpoint is found as the real trainer finds it."""

    async def finish(self, assignment: Assignment, event: Event, workdir: Path, store: ArtifactStore) -> Event:
        return await TrainingStage.finish(self, assignment, event, workdir, store)  # type: ignore[arg-type]


SETTINGS: dict[str, type[ServiceSettings]] = {
    "probe": ProbeSettings,
    "trainer": TrainerSettings,
    "evaluator": EvaluatorSettings,
    "exporter": ExporterSettings,
}


def _mount(worker: StageWorker) -> list[Mount]:
    return [
        Mount(
            trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"],
            trainer_service_pb2_grpc.add_TrainerServiceServicer_to_server,
            TrainerServicer(worker),
        )
    ]


if __name__ == "__main__":
    name = sys.argv[1]
    stage = ChainTraining(name) if name == "trainer" else ChainStage(name)
    process.run(SETTINGS[name](), stage, _mount)
