"""Stage 3 in the supervisor: gives the child the best checkpoint, the held-out rows and the base model."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.graders import BASE, grader, judges
from engine.config.job import DataSource, JobConfig
from engine.config.spec_proto import spec_to_dict
from engine.errors import JobError, SystemFailure
from engine.evaluation.verdicts import training_findings
from engine.hub_datasets import HubDataset
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource as SourceMessage
from finetuneflow.v1.work_pb2 import Assignment, ComparedModel
from services.attempt_inputs import (
    base_model,
    best_checkpoint,
    checked_model,
    child_command,
    dataset_files,
    fetched_model,
    job_configuration,
    measurement_files,
    token_shards,
    whole_checkpoint,
)
from services.child_input import ModelFiles, WholeCheckpoint
from services.evaluator.harness_tasks import INSTALL, SETTING, HarnessTasks
from services.evaluator.settings import EvaluatorSettings
from services.evaluator.worker.child_input import EvaluationInput, Side
from services.hub_access import HubAccess, job_access
from services.hub_files import download, hub_of, pin


class EvaluationStage:
    """Runs `services.evaluator.worker`."""

    service = "evaluator"

    def __init__(self, settings: EvaluatorSettings, catalogue: Catalogue, harness_tasks: HarnessTasks) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._harness_tasks = harness_tasks

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError if the base model's weights on this node differ from those that preflight checked, and
        SystemFailure("HARNESS_TASK_MISSING")."""
        config = job_configuration(assignment.resolved_spec)
        harness_folder = self._harness_folder(config)
        hub = job_access(self._settings, assignment, secrets)
        base, tuned = await self._sides(assignment, config, hub, store, workdir)
        judging: dict[str, Side] = {}
        for judge in (judge for each in config.evaluation.graders for judge in judges(grader(each))):
            if judge.model not in (BASE, *judging):
                folder = workdir / f"judge-{len(judging)}"
                judging[judge.model] = await self._judge(assignment, judge.model, hub, store, folder)
        asked = list(assignment.comparison.data)
        downloaded = await asyncio.to_thread(self._from_hub, asked, hub, workdir / "hub")
        sources = [DataSource.model_validate(spec_to_dict(source)) for source in asked]
        wanted = {config.evaluation.questions, config.evaluation.regression, *(source.dataset for source in sources)}
        sets = await dataset_files(assignment, store, workdir, only=wanted)
        sets |= {one.file.reference: one.path for one in downloaded}
        # A base model that is measured alone has no job, so no rows are held out, and no preflight has limited their
        # length.
        held_out = not sources and base is not None
        if base is None:
            config = _within_context(config, tuned.model.context_length)
        child_input = EvaluationInput(
            config=config,
            base=base,
            tuned=tuned,
            data_dir=await token_shards(assignment, store, workdir) if held_out else workdir / "out" / "rows",
            sources=sources,
            files={source.dataset: sets[source.dataset] for source in sources},
            findings=[*_findings(assignment), *map(_read_from, downloaded)],
            questions=sets.get(config.evaluation.questions),
            regression=sets.get(config.evaluation.regression),
            judges=judging,
            measurements=await measurement_files(assignment, store, workdir),
            out_dir=workdir / "out",
            threads=self._settings.child_threads,
            harness_folder=harness_folder,
        )
        sides = [tuned, *judging.values()] if base is None else [base, tuned, *judging.values()]
        reads = [*(side.model.path for side in sides), harness_folder]
        return child_command(self._settings, child_input, workdir, reads, gpus=min(config.resources.gpus or 0, 1))

    def _from_hub(self, sources: Sequence[SourceMessage], access: HubAccess, folder: Path) -> list[HubDataset]:
        """Downloads the datasets of the hub among the sources, and writes their commits into these. It blocks."""
        hub = hub_of(access, self._settings.max_dataset_bytes)
        files = pin(((f"data[{index}].dataset", source) for index, source in enumerate(sources)), hub)
        return download(hub, files, folder)

    def _harness_folder(self, config: JobConfig) -> Path | None:
        """Returns the folder of tasks, if the evaluation asks for any."""
        evaluation = config.evaluation
        if not (evaluation.enabled and evaluation.harness_tasks):
            return None
        missing = [name for name in evaluation.harness_tasks if name not in self._harness_tasks.names]
        if missing:
            message = f"The evaluator {self._settings.node_id} does not have these tasks: {', '.join(missing)}."
            advice = (
                f"Ask the operator to set {SETTING} to the same tasks for every evaluator, and to run {INSTALL} there."
            )
            raise SystemFailure("HARNESS_TASK_MISSING", message, advice)
        return self._harness_tasks.folder

    async def _sides(
        self, assignment: Assignment, config: JobConfig, hub: HubAccess, store: ArtifactStore, workdir: Path
    ) -> tuple[Side | None, Side]:
        """Returns the model that is compared with, if any, and the one that the evaluation is about."""
        if assignment.HasField("comparison"):
            compared = assignment.comparison
            if not compared.HasField("against"):
                return None, await self._side(assignment, compared.model, hub, store, workdir / "checkpoint")
            against = await self._side(assignment, compared.against, hub, store, workdir / "against")
            return against, await self._side(assignment, compared.model, hub, store, workdir / "checkpoint")
        model = await base_model(self._catalogue, assignment, hub, store, workdir)
        best = await best_checkpoint(assignment, store, workdir)
        tuned = _tuned_side(f"ft:{assignment.fine_tuning_job_id}", model, best, config)
        return Side(id=model.id, model=model), tuned

    async def _judge(
        self, assignment: Assignment, name: str, hub: HubAccess, store: ArtifactStore, folder: Path
    ) -> Side:
        if not name.startswith("ft:"):
            return Side(id=name, model=await fetched_model(self._catalogue, name, hub))
        for found in assignment.judges:
            if found.id == name:
                return await self._side(assignment, found, hub, store, folder)
        message = f"The judge {name} no longer exists."
        raise JobError("MODEL_NOT_FOUND", message, "Name another judge in evaluation.graders.")

    async def _side(
        self, assignment: Assignment, compared: ComparedModel, hub: HubAccess, store: ArtifactStore, folder: Path
    ) -> Side:
        identity = compared.base_model
        if identity.weights_sha256:
            model = await checked_model(self._catalogue, assignment, identity, hub, store, workdir=folder.parent)
        else:
            model = await fetched_model(self._catalogue, identity.id, hub)
        if not compared.HasField("checkpoint"):
            return Side(id=compared.id, model=model)
        checkpoint = await whole_checkpoint(assignment, compared.checkpoint, store, folder)
        return _tuned_side(compared.id, model, checkpoint, job_configuration(compared.trained_with))


def _within_context(config: JobConfig, context_length: int) -> JobConfig:
    hyper = config.hyperparameters
    if not 0 < context_length < hyper.max_length:
        return config
    return config.model_copy(update={"hyperparameters": hyper.model_copy(update={"max_length": context_length})})


def _read_from(downloaded: HubDataset) -> str:
    return f"Rows of {downloaded.file.asked} were read from {downloaded.file.reference}."


def _findings(assignment: Assignment) -> list[str]:
    """Returns what the losses of the training say about the model of the job's last or best step."""
    training = assignment.training
    about = assignment.comparison.model.checkpoint.job_id
    if assignment.HasField("comparison") and about != assignment.fine_tuning_job_id:
        return []
    held_out = training.final_eval_loss if training.HasField("final_eval_loss") else None
    return list(
        training_findings(
            training.final_train_loss, held_out, epochs=training.epochs, early_stopped=training.early_stopped
        )
    )


def _tuned_side(name: str, model: ModelFiles, checkpoint: WholeCheckpoint, trained_with: JobConfig) -> Side:
    quantized = trained_with.method == "qlora"
    return Side(
        id=name,
        model=model,
        checkpoint=checkpoint,
        is_full=trained_with.method == "full",
        chat_template=trained_with.chat_template,
        trained_on=trained_with.quantization if quantized else None,
        needs_quantized=quantized and trained_with.lora.init_lora_weights == "loftq",
    )
