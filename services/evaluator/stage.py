"""Stage 3, the supervisor's part: brings the best checkpoint, the held-out rows and the base model to the child."""

import sys
from pathlib import Path

from chassis.artifacts import ArtifactStore
from chassis.child import ChildCommand
from engine.catalogue import Catalogue
from finetuneflow.v1.work_pb2 import Assignment
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.worker.spec import EvaluationSpec, ModelFiles
from services.inputs import base_model, best_checkpoint, child_environment, job_configuration, token_shards


class EvaluationStage:
    """Runs `services.evaluator.worker`."""

    service = "evaluator"

    def __init__(self, settings: EvaluatorSettings, models: Catalogue) -> None:
        self._settings = settings
        self._models = models

    async def prepare(self, assignment: Assignment, workdir: Path, store: ArtifactStore) -> ChildCommand:
        """Raises JobError when this node has other weights than preflight saw."""
        config = job_configuration(assignment)
        identity = assignment.preflight.base_model
        local = await base_model(self._models, identity, self._settings.hub_token.get_secret_value())
        spec = EvaluationSpec(
            config=config,
            model=ModelFiles(
                path=local.path, id=identity.id, revision=identity.revision, weights_sha256=identity.weights_sha256
            ),
            adapter_dir=await best_checkpoint(assignment, store, workdir),
            data_dir=await token_shards(assignment, store, workdir),
            out_dir=workdir / "out",
            threads=self._settings.child_threads,
        )
        file = workdir / "spec.json"
        file.write_text(spec.model_dump_json(indent=1), "utf-8")
        return ChildCommand(
            argv=[sys.executable, "-m", "services.evaluator.worker", str(file)],
            env=child_environment(self._settings, gpus=config.resources.gpus),
            out_dir=spec.out_dir,
        )
