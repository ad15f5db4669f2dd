"""Stage 4 in the supervisor: gives the child the best checkpoint, the base model and the job's figures."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.config.spec_proto import spec_to_dict
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import (
    base_model,
    best_checkpoint,
    child_command,
    evaluation_rows,
    held_out_shard,
    held_out_texts,
    job_configuration,
)
from services.exporter.settings import ExporterSettings
from services.exporter.signing import export_key
from services.exporter.worker.child_input import AdapterBelow, DatasetFile, ExportInput, JobOrigin
from services.exporter.worker.row_forms import RowForms
from services.hub_access import job_access


class ExportStage:
    """Runs `services.exporter.worker`."""

    service = "exporter"

    def __init__(self, settings: ExporterSettings, catalogue: Catalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self._signing_key = settings.signing_key

    async def prepare(
        self, assignment: Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Raises JobError if the base model's weights on this node differ from those that preflight checked."""
        config = job_configuration(assignment.resolved_spec)
        hub = job_access(self._settings, assignment, secrets)
        datasets = [
            DatasetFile(id=d.id, filename=d.filename, sha256=d.sha256)
            for d in assignment.datasets
            if d.id not in (config.start_from, config.evaluation.questions, config.evaluation.regression)
        ]
        from_hub = assignment.preflight.hub_datasets
        datasets += [DatasetFile(id=d.pinned, filename=d.filename, sha256=d.sha256) for d in from_hub]
        created = assignment.create_time.ToJsonString()
        merged = bool({"merged", "gguf"} & {*config.export.formats})
        chat = RowForms.of_data(assignment.preflight.training_data).chat
        job_id, step = assignment.fine_tuning_job_id, assignment.training.best_step
        child_input = ExportInput(
            config=config,
            model=await base_model(self._catalogue, assignment, hub),
            adapter_dir=(await best_checkpoint(assignment, store, workdir)).path,
            out_dir=workdir / "out",
            job=JobOrigin(id=job_id, create_time=created, datasets=datasets, lineage=_lineage(assignment)),
            preflight=assignment.preflight,
            training=assignment.training,
            evaluation=assignment.evaluation,
            evaluation_rows=await evaluation_rows(assignment, store, workdir),
            held_out=await held_out_shard(assignment, store, workdir) if chat or merged else None,
            held_out_texts=await held_out_texts(assignment, store, workdir) if chat else None,
            signing=export_key(self._signing_key, job_id, step) if self._signing_key else None,
            metrics=list(assignment.metrics),
        )
        # Packing and forward passes of a few rows: a GPU would only be taken away from a training.
        return child_command(self._settings, child_input, workdir, [child_input.model.path], gpus=0)


def _lineage(assignment: Assignment) -> list[AdapterBelow]:
    return [AdapterBelow.model_validate(spec_to_dict(each)) for each in assignment.start.lineage]
