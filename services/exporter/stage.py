"""Stage 4 in the supervisor: gives the child the best checkpoint, the base model and the job's figures; for the export
of a base model alone that model."""

from collections.abc import Collection, Mapping
from pathlib import Path

from pydantic import SecretStr

from chassis.attempt.stage import Delivery
from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore, Stored
from engine.catalogue import Catalogue
from engine.config.job import JobConfig
from engine.config.spec_proto import spec_to_dict
from finetuneflow.v1.event_pb2 import StageCompleted
from finetuneflow.v1.fine_tuning_job_pb2 import Checkpoint
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import (
    base_model,
    best_checkpoint,
    child_command,
    evaluation_rows,
    fetched_model,
    held_out_shard,
    held_out_texts,
    job_configuration,
    whole_checkpoint,
)
from services.exporter.gguf_types import GgufTypes, quantizer_missing
from services.exporter.hub_push import delivery_of, token_secret, write_token
from services.exporter.settings import ExporterSettings
from services.exporter.signing import export_key
from services.exporter.worker.child_input import AdapterBelow, DatasetFile, ExportInput, JobOrigin
from services.exporter.worker.row_forms import RowForms
from services.hub_access import HubAccess, job_access


class ExportStage:
    """Runs `services.exporter.worker`, then `services.exporter.push` if the package is pushed to the hub."""

    service = "exporter"

    def __init__(self, settings: ExporterSettings, catalogue: Catalogue, gguf_types: GgufTypes) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._gguf_types = gguf_types
        self._signing_key = settings.signing_key

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError if the base model's weights on this node differ from those that preflight checked, or if the
        token for the push is missing; SystemFailure("GGUF_QUANTIZER_MISSING")."""
        write_token(assignment, secrets)
        config = job_configuration(assignment.resolved_spec)
        libllama = self._libllama(config)
        hub = job_access(self._settings, assignment, secrets)
        datasets = [
            DatasetFile(id=d.id, filename=d.filename, sha256=d.sha256)
            for d in assignment.datasets
            if d.id not in (config.start_from, config.evaluation.questions, config.evaluation.regression)
        ]
        from_hub = assignment.preflight.hub_datasets
        datasets += [DatasetFile(id=d.pinned, filename=d.filename, sha256=d.sha256) for d in from_hub]
        created = assignment.create_time.ToJsonString()
        if assignment.comparison.HasField("model") and not assignment.comparison.model.HasField("checkpoint"):
            return await self._export_of_base(assignment, config, workdir, hub)
        merged = bool({"merged", "gguf", "gguf_adapter"} & {*config.export.formats})
        chat = RowForms.of_data(assignment.preflight.training_data).chat
        job_id = assignment.fine_tuning_job_id
        other = _other_checkpoint(assignment)
        if other is None:
            step = assignment.training.best_step
            checkpoint = await best_checkpoint(assignment, store, workdir)
        else:
            step = other.step
            checkpoint = await whole_checkpoint(assignment, other, store, workdir / "checkpoint")
        child_input = ExportInput(
            config=config,
            model=await base_model(self._catalogue, assignment, hub, store, workdir),
            adapter_dir=checkpoint.path,
            step=None if other is None else other.step,
            out_dir=workdir / "out",
            job=JobOrigin(id=job_id, create_time=created, datasets=datasets, lineage=_lineage(assignment)),
            preflight=assignment.preflight,
            training=assignment.training,
            # The job's evaluation is about its best checkpoint.
            evaluation=assignment.evaluation if other is None else EvaluationResult(),
            evaluation_rows=await evaluation_rows(assignment, store, workdir) if other is None else None,
            held_out=await held_out_shard(assignment, store, workdir) if chat or merged else None,
            held_out_texts=await held_out_texts(assignment, store, workdir) if chat else None,
            signing=export_key(self._signing_key, job_id, step) if self._signing_key else None,
            libllama=libllama,
            metrics=list(assignment.metrics),
        )
        # Packing and forward passes of a few rows: a GPU would only be taken away from a training.
        reads = [child_input.model.path, libllama]
        return child_command(self._settings, child_input, workdir, reads, gpus=0)

    async def _export_of_base(
        self, assignment: Assignment, config: JobConfig, workdir: Path, hub: HubAccess
    ) -> ChildCommand:
        model = await fetched_model(self._catalogue, assignment.comparison.model.base_model.id, hub)
        named = model.id.rpartition("/")[2]
        # No job is concerned, so the id is the export's.
        export_id, step = assignment.fine_tuning_job_id, 0
        child_input = ExportInput(
            # All weights are in the model's own files, as those of a training with method full are.
            config=config.model_copy(update={"method": "full", "display_name": named[:128]}),
            model=model,
            adapter_dir=model.path,
            of_base=True,
            out_dir=workdir / "out",
            job=JobOrigin(id=export_id, create_time=assignment.create_time.ToJsonString()),
            preflight=PreflightResult(),
            training=TrainingResult(),
            evaluation=EvaluationResult(),
            signing=export_key(self._signing_key, export_id, step) if self._signing_key else None,
            libllama=self._libllama(config),
        )
        return child_command(self._settings, child_input, workdir, [model.path, child_input.libllama], gpus=0)

    def _libllama(self, config: JobConfig) -> Path | None:
        """Returns the folder of the library, if the export asks for a type that it makes."""
        if not config.export.quantized_gguf_types:
            return None
        if self._gguf_types.problem:
            raise quantizer_missing(self._gguf_types.problem)
        return self._gguf_types.folder

    def secrets_of_delivery(self, assignment: Assignment) -> Collection[str]:
        """The token for the push; nothing if the package is not pushed."""
        return {token_secret(assignment)} - {""}

    def delivery(
        self,
        assignment: Assignment,
        completed: StageCompleted,
        stored: Mapping[str, Stored],
        command: ChildCommand,
        workdir: Path,
        secrets: Mapping[str, SecretStr],
    ) -> Delivery | None:
        """The push to the hub; None if the package is not pushed."""
        token = write_token(assignment, secrets)
        if token is None:
            return None
        other = _other_checkpoint(assignment)
        step = assignment.training.best_step if other is None else other.step
        package = completed.export.package_path
        return delivery_of(assignment, stored, package, step, command.out_dir, workdir, token)


def _other_checkpoint(assignment: Assignment) -> Checkpoint | None:
    """Returns the checkpoint that is packed; None for the best one."""
    chosen = assignment.comparison.model.checkpoint
    best = assignment.training.best_checkpoint_path
    return chosen if assignment.comparison.HasField("model") and chosen.path != best else None


def _lineage(assignment: Assignment) -> list[AdapterBelow]:
    return [AdapterBelow.model_validate(spec_to_dict(each)) for each in assignment.start.lineage]
