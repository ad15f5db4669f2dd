"""Stage 3 in the supervisor: gives the child the best checkpoint, the held-out rows and the base model."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import base_model, best_checkpoint, child_command, job_configuration, token_shards
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.worker.child_input import EvaluationInput
from services.hub_access import job_access


class EvaluationStage:
    """Runs `services.evaluator.worker`."""

    service = "evaluator"

    def __init__(self, settings: EvaluatorSettings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError if the base model's weights on this node differ from those that preflight checked."""
        config = job_configuration(assignment.resolved_spec)
        hub = job_access(self._settings, assignment, secrets)
        child_input = EvaluationInput(
            config=config,
            model=await base_model(self._catalogue, assignment, hub),
            adapter_dir=await best_checkpoint(assignment, store, workdir),
            data_dir=await token_shards(assignment, store, workdir),
            out_dir=workdir / "out",
            threads=self._settings.child_threads,
        )
        return child_command(self._settings, child_input, workdir, [child_input.model.path], gpus=config.resources.gpus)
