"""Events in the history of a job. `event.kind` names the payload: `event.log.loss` if the kind is `log`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import TypeVar

from finetuneflow.enums import enum_name
from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.job import Fault, JobState, Resolution, Stage
from finetuneflow.resources.stage_result import (
    EvaluationResult,
    ExportResult,
    InferenceSample,
    PreflightResult,
    TrainingResult,
)
from finetuneflow.v1 import event_pb2 as pb
from finetuneflow.v1 import fine_tuning_job_pb2 as job_pb

P = TypeVar("P", bound=Resource)


class Severity(OpenEnum):
    """Severity of an event."""

    DEBUG = "DEBUG"
    """Detail for troubleshooting."""
    INFO = "INFO"
    """Normal operation."""
    WARNING = "WARNING"
    """A problem that does not stop the job."""
    ERROR = "ERROR"
    """A failure."""


@dataclass(frozen=True, kw_only=True)
class StateChanged(Resource):
    """The job's state or stage changed."""

    state: JobState
    """The new state."""
    stage: Stage
    """The job's current stage."""
    reason: str
    """The cause: one of `finetuneflow.Reason`."""
    message: str
    """The cause in one sentence."""
    fault: Fault | None
    """For FAILED: who can fix the failure."""
    advice: str
    """For FAILED: how to fix the failure."""
    node_id: str
    """For RUNNING and VALIDATING: id of the node that claimed the stage."""


@dataclass(frozen=True, kw_only=True)
class Phase(Resource):
    """The worker entered phase `index` of `count` of its stage."""

    name: str
    """Name in lower_snake_case, such as loading_model."""
    index: int
    """Position among the stage's phases, from 1."""
    count: int
    """Number of phases of the stage."""
    detail: str
    """Readable description of the current work."""
    fraction: float | None
    """Completed fraction of the phase, in [0, 1]. None if unknown."""


@dataclass(frozen=True, kw_only=True)
class Log(Resource):
    """Training metrics, every logging_steps."""

    step: int
    """Completed optimizer steps."""
    total_steps: int
    """Optimizer steps of the whole job."""
    epoch: float
    """Completed epochs, fractional."""
    loss: float
    """Mean loss since the previous log event, in nats per trained token. It is finite: a loss that is NaN or infinite
    ends the attempt with LOSS_NOT_FINITE before its step is taken."""
    learning_rate: float
    """Learning rate of the latest step."""
    grad_norm: float
    """Norm of the latest gradient before clipping. With fp16 it may be NaN or infinite: the loss scaler then skips the
    step."""
    tokens_per_second: float
    """Tokens per second since the previous log event, without padding, evaluation and saving."""
    num_tokens: int
    """Tokens trained into the current weights, without padding; repeated steps after a failure count once."""
    eta_seconds: float
    """Estimated seconds until training ends."""
    elapsed_seconds: float
    """Seconds of training in this attempt."""
    extras: dict[str, float]
    """Further metrics of the training method, by name."""
    samples_per_second: float
    """Rows per second since the previous log event; packed rows count individually. As all rates and times below,
    without evaluation and saving, and of this attempt only."""
    padded_tokens_per_second: float
    """Tokens per second since the previous log event, with padding."""
    seconds_per_step: float
    """Mean seconds per optimizer step since the previous log event."""
    mfu: float | None
    """Model FLOPs utilisation: the operations that the tokens without padding need, without recomputation, as a
    fraction of the device's peak in 16 bits. None if the peak is unknown: on CPUs, on GPUs that are not in the
    estimator's table, and with fp32."""
    data_seconds: float
    """Part of seconds_per_step spent waiting for rows. On GPUs, this and the three times below are those of the device:
    this one is the time in which it had nothing to do between two steps."""
    forward_seconds: float
    """Part of seconds_per_step spent in the forward pass and the loss."""
    backward_seconds: float
    """Part of seconds_per_step spent in the backward pass."""
    optimizer_seconds: float
    """Part of seconds_per_step spent clipping the gradient and updating the weights."""


@dataclass(frozen=True, kw_only=True)
class Eval(Resource):
    """Evaluation metrics during training, every eval_steps."""

    step: int
    """Completed optimizer steps."""
    total_steps: int
    """Optimizer steps of the whole job."""
    epoch: float
    """Completed epochs, fractional."""
    eval_loss: float
    """Mean loss on the held-out rows in nats per trained token, computed in the job's precision."""
    perplexity: float
    """exp(eval_loss)."""
    eval_runtime_seconds: float
    """Duration of the evaluation in seconds."""
    best: bool
    """True if eval_loss is the lowest so far."""
    evaluations_without_improvement: int
    """Evaluations since eval_loss last fell by more than early_stopping_threshold. Early stopping compares it with
    early_stopping_patience."""
    extras: dict[str, float]
    """Further metrics, by name."""


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Resource):
    """A checkpoint was written, hashed and uploaded."""

    step: int
    """Completed optimizer steps."""
    epoch: float
    """Completed epochs, fractional."""
    path: str
    """Path of its folder in the artifact store, relative to the tenant's folder."""
    manifest_sha256: str
    """SHA-256 of its manifest, in hexadecimal."""
    size_bytes: int
    """Total size of its files in bytes."""
    eval_loss: float | None
    """Evaluation loss at this step in nats per trained token. None if not measured."""
    best: bool
    """True if its evaluation loss is the lowest so far."""


@dataclass(frozen=True, kw_only=True)
class CheckpointPruned(Resource):
    """A checkpoint was deleted because of save_total_limit."""

    step: int
    """Step of the deleted checkpoint."""
    path: str
    """Path of the deleted checkpoint, relative to the tenant's folder."""


@dataclass(frozen=True, kw_only=True)
class Complete(Resource):
    """Training ended."""

    total_steps: int
    """Completed optimizer steps."""
    best_metric: float | None
    """Lowest evaluation loss in nats per trained token. None without held-out rows."""
    best_step: int
    """Step of the lowest evaluation loss; the last step without held-out rows."""
    early_stopped: bool
    """True if early stopping ended the training."""
    train_loss: float
    """Mean training loss of this attempt in nats per trained token."""
    train_runtime_seconds: float
    """Seconds of training in this attempt."""
    train_samples_per_second: float
    """Rows trained per second in this attempt."""


@dataclass(frozen=True, kw_only=True)
class GpuUsage(Resource):
    """Usage of one GPU."""

    index: int
    """Index of the GPU on the node."""
    utilization: float
    """Fraction of time during which a kernel ran, in [0, 1]."""
    memory_used_bytes: int
    """Used memory in bytes."""
    temperature_celsius: float
    """Temperature in degrees Celsius."""
    power_watts: float
    """Power draw in watts."""


@dataclass(frozen=True, kw_only=True)
class ResourceUsage(Resource):
    """Resource usage of a worker."""

    memory_bytes: int
    """Resident memory of the worker's child process, in bytes."""
    peak_memory_bytes: int
    """Peak resident memory in this attempt, in bytes."""
    cpu_cores: float
    """CPU usage of the child process, in cores."""
    gpus: tuple[GpuUsage, ...]
    """Usage of each GPU of the job."""


@dataclass(frozen=True, kw_only=True)
class Warning(Resource):
    """A problem that does not stop the job."""

    reason: str
    """The cause: one of `finetuneflow.Reason`."""
    message: str
    """The problem in one sentence."""
    advice: str
    """Advice on how to fix it."""


@dataclass(frozen=True, kw_only=True)
class ConfigResolved(Resource):
    """Preflight resolved every automatic value."""

    resolved_spec: dict[str, object]
    """The spec with every field set. In the form that `jobs.create` takes."""
    resolutions: tuple[Resolution, ...]
    """Reason of each automatic value."""


@dataclass(frozen=True, kw_only=True)
class ArtifactSaved(Resource):
    """A file or folder was written to the artifact store."""

    path: str
    """Path in the artifact store, relative to the tenant's folder."""
    kind: str
    """One of `shards`, `validation_report`, `export_package`, `export_file`."""
    sha256: str
    """SHA-256 of the file, or of the folder's manifest, in hexadecimal."""
    size_bytes: int
    """Size in bytes; for a folder, the sum over its files."""
    media_type: str
    """IANA media type; `inode/directory` for a folder."""


@dataclass(frozen=True, kw_only=True)
class Restored(Resource):
    """An attempt resumed from a checkpoint."""

    checkpoint_step: int
    """Step of the checkpoint."""
    manifest_sha256: str
    """SHA-256 of the checkpoint's manifest, in hexadecimal."""
    first_step: int
    """First optimizer step of this attempt; above total_steps if training was already complete."""


@dataclass(frozen=True, kw_only=True)
class StageCompleted(Resource):
    """Ends an attempt: the stage succeeded. Only the result of its stage is set."""

    preflight: PreflightResult | None
    """Result of stage PREFLIGHT."""
    training: TrainingResult | None
    """Result of stage TRAINING."""
    evaluation: EvaluationResult | None
    """Result of stage EVALUATION."""
    export: ExportResult | None
    """Result of stage EXPORT."""


@dataclass(frozen=True, kw_only=True)
class FieldViolation(Resource):
    """A field or row that caused a failure."""

    field: str
    """Field path in the spec, or `training_data[0] row 17`."""
    description: str
    """The problem and how to fix it."""


@dataclass(frozen=True, kw_only=True)
class StageFailed(Resource):
    """Ends an attempt: the stage failed. The job may start another attempt."""

    fault: Fault | None
    """The party that can fix the failure."""
    reason: str
    """The cause, one of `finetuneflow.Reason`: KILLED, STALLED, CUDA_OUT_OF_MEMORY, HOST_OUT_OF_MEMORY, BAD_DATA,
    MODEL_NOT_FOUND, INVALID_CONFIG, CRASHED, LEASE_EXPIRED, …"""
    message: str
    """The cause in one sentence."""
    advice: str
    """Advice on how to fix the failure: the field or setting to change."""
    last_lines: tuple[str, ...]
    """Last lines that the child printed; at most 40 lines and 8 KiB."""
    violations: tuple[FieldViolation, ...]
    """Fields and rows that caused the failure."""


@dataclass(frozen=True, kw_only=True)
class StageReleased(Resource):
    """Ends an attempt: the worker released the stage on request."""

    reason: str
    """PAUSED if the job was paused, CANCELLED if it was cancelled, DRAINED if the worker is shutting down."""


PAYLOADS: Mapping[str, type[Resource]] = MappingProxyType(
    {
        "state_changed": StateChanged,
        "phase": Phase,
        "log": Log,
        "eval": Eval,
        "checkpoint": CheckpointSaved,
        "complete": Complete,
        "sample": InferenceSample,
        "resource_usage": ResourceUsage,
        "warning": Warning,
        "config_resolved": ConfigResolved,
        "artifact": ArtifactSaved,
        "restored": Restored,
        "stage_completed": StageCompleted,
        "stage_failed": StageFailed,
        "stage_released": StageReleased,
        "checkpoint_pruned": CheckpointPruned,
    }
)


@dataclass(frozen=True)
class Event:
    """One event in the history of a job.

    Read the payload from the attribute named like `kind` (any other raises AttributeError), or match on `payload`.
    """

    proto: pb.Event = field(repr=False, compare=False)
    """The complete message that the event was read from."""
    kind: str
    """Name of the payload, such as `log`. Empty for a kind that this client doesn't know."""
    job_id: str
    """Id of the job that the event belongs to."""
    sequence: int
    """Position in the job's history: from 1 without gaps, assigned once on acceptance. 0 before acceptance."""
    stage: Stage
    """Stage in which the event happened."""
    attempt: int
    """Attempt of that stage, from 1."""
    source: str
    """Reporter: a node id, or `gateway` for decisions of the gateway."""
    severity: Severity
    """Severity; `jobs.watch` can filter by it."""
    event_time: datetime | None
    """Time of the event by the reporter's clock. Informative; no rule depends on it."""

    @classmethod
    def from_proto(cls, message: pb.Event) -> Event:
        """Reads the event from `message`."""
        return cls(
            proto=message,
            kind=message.WhichOneof("payload") or "",
            job_id=message.job_id,
            sequence=message.sequence,
            stage=Stage(enum_name(job_pb.Stage.DESCRIPTOR, message.stage)),
            attempt=message.attempt,
            source=message.source,
            severity=Severity(enum_name(pb.Severity.DESCRIPTOR, message.severity or pb.SEVERITY_INFO)),
            event_time=message.event_time.ToDatetime(tzinfo=UTC) if message.HasField("event_time") else None,
        )

    @cached_property
    def payload(self) -> Resource | None:
        """The payload. None for a kind that this client doesn't know."""
        kind = PAYLOADS.get(self.kind)
        return kind.from_proto(getattr(self.proto, self.kind)) if kind else None

    def _payload(self, kind: type[P]) -> P:
        if not isinstance(self.payload, kind):
            raise AttributeError(f"The event has kind {self.kind!r}; check event.kind before you read another payload.")
        return self.payload

    @property
    def state_changed(self) -> StateChanged:
        return self._payload(StateChanged)

    @property
    def phase(self) -> Phase:
        return self._payload(Phase)

    @property
    def log(self) -> Log:
        return self._payload(Log)

    @property
    def eval(self) -> Eval:
        return self._payload(Eval)

    @property
    def checkpoint(self) -> CheckpointSaved:
        return self._payload(CheckpointSaved)

    @property
    def complete(self) -> Complete:
        return self._payload(Complete)

    @property
    def sample(self) -> InferenceSample:
        return self._payload(InferenceSample)

    @property
    def resource_usage(self) -> ResourceUsage:
        return self._payload(ResourceUsage)

    @property
    def warning(self) -> Warning:
        return self._payload(Warning)

    @property
    def config_resolved(self) -> ConfigResolved:
        return self._payload(ConfigResolved)

    @property
    def artifact(self) -> ArtifactSaved:
        return self._payload(ArtifactSaved)

    @property
    def restored(self) -> Restored:
        return self._payload(Restored)

    @property
    def stage_completed(self) -> StageCompleted:
        return self._payload(StageCompleted)

    @property
    def stage_failed(self) -> StageFailed:
        return self._payload(StageFailed)

    @property
    def stage_released(self) -> StageReleased:
        return self._payload(StageReleased)

    @property
    def checkpoint_pruned(self) -> CheckpointPruned:
        return self._payload(CheckpointPruned)
