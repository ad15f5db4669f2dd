"""Stage 3 in the supervisor: gives the child the best checkpoint, the held-out rows and the base model."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.graders import BASE, grader, judges
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import (
    base_model,
    best_checkpoint,
    child_command,
    dataset_files,
    fetched_model,
    job_configuration,
    measurement_files,
    token_shards,
)
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.worker.child_input import EvaluationInput, Side
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
        model = await base_model(self._catalogue, assignment, hub)
        quantized = config.method == "qlora"
        tuned = Side(
            id=f"ft:{assignment.fine_tuning_job_id}",
            model=model,
            checkpoint=await best_checkpoint(assignment, store, workdir),
            is_full=config.method == "full",
            trained_on=config.quantization if quantized else None,
            needs_quantized=quantized and config.lora.init_lora_weights == "loftq",
        )
        judging: dict[str, Side] = {}
        for judge in (judge for each in config.evaluation.graders for judge in judges(grader(each))):
            if judge.model not in (BASE, *judging):
                judging[judge.model] = Side(
                    id=judge.model, model=await fetched_model(self._catalogue, judge.model, hub)
                )
        wanted = {config.evaluation.questions, config.evaluation.regression}
        sets = await dataset_files(assignment, store, workdir, only=wanted)
        child_input = EvaluationInput(
            config=config,
            base=Side(id=model.id, model=model),
            tuned=tuned,
            data_dir=await token_shards(assignment, store, workdir),
            questions=sets.get(config.evaluation.questions),
            regression=sets.get(config.evaluation.regression),
            judges=judging,
            measurements=await measurement_files(assignment, store, workdir),
            out_dir=workdir / "out",
            threads=self._settings.child_threads,
        )
        reads = [model.path, *(side.model.path for side in judging.values())]
        return child_command(self._settings, child_input, workdir, reads, gpus=config.resources.gpus)
