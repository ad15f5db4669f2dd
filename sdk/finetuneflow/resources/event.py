"""What happened to a job. `event.kind` names the payload: `event.log.loss` when it is `log`."""

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
    """How loud an event is."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True, kw_only=True)
class StateChanged(Resource):
    """The job's state or stage changed."""

    state: JobState
    stage: Stage
    reason: str
    message: str
    fault: Fault | None
    advice: str
    node_id: str


@dataclass(frozen=True, kw_only=True)
class Phase(Resource):
    """The worker entered part `index` of `count` of its stage."""

    name: str
    index: int
    count: int
    detail: str
    fraction: float | None


@dataclass(frozen=True, kw_only=True)
class Log(Resource):
    """Training figures. Loss in nats per trained token."""

    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    num_tokens: int
    eta_seconds: float
    elapsed_seconds: float
    extras: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Eval(Resource):
    """Evaluation figures during training. Loss in nats per trained token."""

    step: int
    total_steps: int
    epoch: float
    eval_loss: float
    perplexity: float
    eval_runtime_seconds: float
    best: bool
    evaluations_without_improvement: int
    extras: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Resource):
    """A checkpoint was written, hashed and uploaded."""

    step: int
    epoch: float
    path: str
    manifest_sha256: str
    size_bytes: int
    eval_loss: float | None
    best: bool


@dataclass(frozen=True, kw_only=True)
class CheckpointPruned(Resource):
    """A checkpoint was deleted to stay within save_total_limit."""

    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class Complete(Resource):
    """Training ended."""

    total_steps: int
    best_metric: float | None
    best_step: int
    early_stopped: bool
    train_loss: float
    train_runtime_seconds: float
    train_samples_per_second: float


@dataclass(frozen=True, kw_only=True)
class GpuUsage(Resource):
    """Use of one GPU."""

    index: int
    utilization: float
    memory_used_bytes: int
    temperature_celsius: float
    power_watts: float


@dataclass(frozen=True, kw_only=True)
class ResourceUsage(Resource):
    """Use of the machine by the worker."""

    memory_bytes: int
    peak_memory_bytes: int
    cpu_cores: float
    gpus: tuple[GpuUsage, ...]


@dataclass(frozen=True, kw_only=True)
class Warning(Resource):
    """Something the caller should know, though work goes on."""

    reason: str
    message: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class ConfigResolved(Resource):
    """Every automatic choice was made."""

    resolved_spec: dict[str, object]
    resolutions: tuple[Resolution, ...]


@dataclass(frozen=True, kw_only=True)
class ArtifactSaved(Resource):
    """A file or folder was written to the artifact store."""

    path: str
    kind: str
    sha256: str
    size_bytes: int
    media_type: str


@dataclass(frozen=True, kw_only=True)
class Restored(Resource):
    """A worker went on from a checkpoint."""

    checkpoint_step: int
    manifest_sha256: str
    first_step: int


@dataclass(frozen=True, kw_only=True)
class StageCompleted(Resource):
    """A stage is done; the one result of its stage is set."""

    preflight: PreflightResult | None
    training: TrainingResult | None
    evaluation: EvaluationResult | None
    export: ExportResult | None


@dataclass(frozen=True, kw_only=True)
class FieldViolation(Resource):
    """A field or a row that was at fault."""

    field: str
    description: str


@dataclass(frozen=True, kw_only=True)
class StageFailed(Resource):
    """An attempt failed; the job may have another one."""

    fault: Fault | None
    reason: str
    message: str
    advice: str
    last_lines: tuple[str, ...]
    violations: tuple[FieldViolation, ...]


@dataclass(frozen=True, kw_only=True)
class StageReleased(Resource):
    """A worker let go on request."""

    reason: str


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
    """One thing that happened to a job.

    Read the payload as the attribute named like `kind` (another one raises AttributeError), or match on `payload`.
    A kind that this client doesn't know has the kind `""` and the payload None; `proto` keeps what came.
    """

    proto: pb.Event = field(repr=False, compare=False)
    kind: str
    job_id: str
    sequence: int
    stage: Stage
    attempt: int
    source: str
    severity: Severity
    event_time: datetime | None

    @classmethod
    def from_proto(cls, message: pb.Event) -> Event:
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
        kind = PAYLOADS.get(self.kind)
        return kind.from_proto(getattr(self.proto, self.kind)) if kind else None

    def _payload(self, kind: type[P]) -> P:
        if not isinstance(self.payload, kind):
            raise AttributeError(f"this event is of kind {self.kind!r} and has no such payload")
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
