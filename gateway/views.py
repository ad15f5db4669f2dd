"""Converts rows to the messages that callers receive."""

from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.evaluation_pb2 import Evaluation
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.export_pb2 import Export
from finetuneflow.v1.fine_tuning_job_pb2 import AttemptSummary, Checkpoint, FineTuningJob, Progress
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EvaluationSpec, FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, ExportResult, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import Comparison, TrainingStart
from gateway.sql.tables import Attempt, SavedCheckpoint, SavedResult, UploadedDataset, Work

_SHARED = (
    "state",
    "reason",
    "message",
    "fault",
    "advice",
    "attempt",
    "failed_attempts",
    "last_sequence",
)


def timestamp(microseconds: int) -> Timestamp:
    out = Timestamp()
    out.FromMicroseconds(microseconds)
    return out


def job(row: Work, *, evaluation: SavedResult | None = None, export_id: str = "") -> FineTuningJob:
    """Converts a job; its evaluation and its export are rows of their own."""
    out = FineTuningJob(
        id=row.id,
        spec=FineTuningJobSpec.FromString(row.spec),
        state=row.state,
        stage=row.stage,
        reason=row.reason,
        message=row.message,
        fault=row.fault,
        advice=row.advice,
        attempt=row.attempt,
        failed_attempts=row.failed_attempts,
        progress=Progress.FromString(row.progress),
        last_sequence=row.last_sequence,
        evaluation_id="" if evaluation is None else evaluation.id,
        export_id=export_id,
        tuned_model=f"ft:{row.id}" if export_id else "",
        gate_decision=(evaluation.decision or None) if evaluation is not None else None,
        shown_regression="" if evaluation is None else evaluation.shown_regression,
        create_time=timestamp(row.create_time),
        update_time=timestamp(row.update_time),
    )
    if row.config is not None:
        config = ConfigResolved.FromString(row.config)
        out.resolved_spec.CopyFrom(config.resolved_spec)
        out.resolutions.extend(config.resolutions)
    if row.start is not None:
        out.lineage.extend(TrainingStart.FromString(row.start).lineage)
    if row.preflight is not None:
        out.preflight.CopyFrom(PreflightResult.FromString(row.preflight))
    if row.training is not None:
        out.training.CopyFrom(TrainingResult.FromString(row.training))
    if row.end_time is not None:
        out.end_time.CopyFrom(timestamp(row.end_time))
    return out


def evaluation(row: SavedResult, work: Work) -> Evaluation:
    """An evaluation and the work that makes it."""
    out = Evaluation(**_of_result(row, work))
    out.spec.CopyFrom(resolved_spec(work).evaluation)
    if work.comparison is not None and row.id == work.id:
        comparison = Comparison.FromString(work.comparison)
        out.model, out.against = comparison.model.id, comparison.against.id
        out.data.extend(comparison.data)
    if row.result is not None:
        out.result.CopyFrom(EvaluationResult.FromString(row.result))
    return out


def export(row: SavedResult, work: Work) -> Export:
    """An export and the work that makes it."""
    out = Export(**_of_result(row, work))
    out.spec.CopyFrom(resolved_spec(work).export)
    if work.comparison is not None and row.id == work.id:
        # It packs another checkpoint than the best one, or a base model.
        out.model = Comparison.FromString(work.comparison).model.id
    out.formats.extend(out.spec.formats)
    if row.result is not None:
        out.result.CopyFrom(ExportResult.FromString(row.result))
    return out


def resolved_spec(work: Work) -> FineTuningJobSpec:
    """The settings that the work runs with; empty for a job before its preflight has resolved them."""
    return ConfigResolved.FromString(work.config or b"").resolved_spec


def evaluation_settings(work: Work) -> EvaluationSpec:
    """Returns the settings of a work's evaluation, as far as they are known: preflight resolves those of a job."""
    if work.config is None:
        return FineTuningJobSpec.FromString(work.merged_spec).evaluation
    return resolved_spec(work).evaluation


def _of_result(row: SavedResult, work: Work) -> dict[str, Any]:
    """The fields that both resources have."""
    fields: dict[str, Any] = {
        "id": row.id,
        # Work about a base model alone is about no job; its row refers to itself.
        "job_id": "" if row.job_id == row.id else row.job_id,
        "model": f"ft:{row.job_id}",
        "create_time": timestamp(row.create_time),
        "max_attempts": work.max_attempts,
    }
    if row.id != work.id:
        # A stage of a job leaves its result when it is done.
        done = timestamp(row.create_time)
        return fields | {"state": "JOB_STATE_SUCCEEDED", "reason": "COMPLETED", "update_time": done, "end_time": done}
    fields |= {name: getattr(work, name) for name in _SHARED}
    fields["progress"] = Progress.FromString(work.progress)
    fields["update_time"] = timestamp(work.update_time)
    if work.end_time is not None:
        fields["end_time"] = timestamp(work.end_time)
    return fields


def attempt(row: Attempt) -> AttemptSummary:
    out = AttemptSummary(
        stage=row.stage,
        attempt=row.attempt,
        state=row.state,
        node_id=row.node_id,
        outcome=row.outcome,
        reason=row.reason,
        message=row.message,
        counted=row.counted,
        create_time=timestamp(row.create_time),
    )
    if row.claim_time is not None:
        out.claim_time.CopyFrom(timestamp(row.claim_time))
    if row.end_time is not None:
        out.end_time.CopyFrom(timestamp(row.end_time))
    return out


def checkpoint(row: SavedCheckpoint) -> Checkpoint:
    return Checkpoint(
        job_id=row.work_id,
        step=row.step,
        epoch=row.epoch,
        attempt=row.attempt,
        path=row.path,
        manifest_sha256=row.manifest_sha256,
        size_bytes=row.size_bytes,
        eval_loss=row.eval_loss,
        best=row.best,
        create_time=timestamp(row.create_time),
    )


def dataset(row: UploadedDataset) -> Dataset:
    return Dataset(
        id=row.id,
        display_name=row.display_name,
        filename=row.filename,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        path=row.path,
        create_time=timestamp(row.create_time),
    )
