"""Stage 2, the supervisor's part: brings token shards, base model and the newest checkpoint to the training child."""

import sys
from pathlib import Path

from chassis.artifacts import ArtifactStore
from chassis.child import ChildCommand
from engine.catalogue import Catalogue
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.work_pb2 import Assignment
from services.inputs import base_model, child_environment, job_configuration, newest_checkpoint, token_shards
from services.trainer.settings import TrainerSettings
from services.trainer.worker.spec import ModelFiles, TrainingSpec


class TrainingStage:
    """Runs `services.trainer.worker`."""

    service = "trainer"

    def __init__(self, settings: TrainerSettings, models: Catalogue) -> None:
        self._settings = settings
        self._models = models

    async def prepare(self, assignment: Assignment, workdir: Path, store: ArtifactStore) -> ChildCommand:
        """Raises JobError when this node has other weights than preflight saw."""
        config = job_configuration(assignment)
        identity = assignment.preflight.base_model
        local = await base_model(self._models, identity, self._settings.hub_token.get_secret_value())
        spec = TrainingSpec(
            config=config,
            model=ModelFiles(
                path=local.path, id=identity.id, revision=identity.revision, weights_sha256=identity.weights_sha256
            ),
            data_dir=await token_shards(assignment, store, workdir),
            out_dir=workdir / "out",
            resume_from=await newest_checkpoint(assignment, store, workdir),
            total_steps=assignment.preflight.total_steps,
            prior_runtime_seconds=assignment.prior_training_seconds,
            threads=self._settings.child_threads,
        )
        file = workdir / "spec.json"
        file.write_text(spec.model_dump_json(indent=1), "utf-8")
        return ChildCommand(
            argv=[sys.executable, "-m", "services.trainer.worker", str(file)],
            env=child_environment(self._settings, gpus=config.resources.gpus),
            out_dir=spec.out_dir,
        )

    def finish(self, assignment: Assignment, event: Event) -> Event:
        """The best checkpoint may be one that an earlier attempt wrote: it is found among the accepted ones."""
        result = event.stage_completed.training
        if not result.best_checkpoint_manifest_sha256:
            for checkpoint in assignment.checkpoints:
                if checkpoint.step == result.best_step:
                    result.best_checkpoint_path = checkpoint.path
                    result.best_checkpoint_manifest_sha256 = checkpoint.manifest_sha256
                    break
        return event
