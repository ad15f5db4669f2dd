import datetime

from finetuneflow.v1 import fine_tuning_job_pb2 as _fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Severity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEVERITY_UNSPECIFIED: _ClassVar[Severity]
    SEVERITY_DEBUG: _ClassVar[Severity]
    SEVERITY_INFO: _ClassVar[Severity]
    SEVERITY_WARNING: _ClassVar[Severity]
    SEVERITY_ERROR: _ClassVar[Severity]
SEVERITY_UNSPECIFIED: Severity
SEVERITY_DEBUG: Severity
SEVERITY_INFO: Severity
SEVERITY_WARNING: Severity
SEVERITY_ERROR: Severity

class Event(_message.Message):
    __slots__ = ("job_id", "sequence", "stage", "attempt", "ordinal", "source", "event_time", "severity", "state_changed", "phase", "log", "eval", "checkpoint", "complete", "sample", "resource_usage", "warning", "config_resolved", "artifact", "restored", "stage_completed", "stage_failed", "stage_released", "checkpoint_pruned")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    ORDINAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    STATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    EVAL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    CONFIG_RESOLVED_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    RESTORED_FIELD_NUMBER: _ClassVar[int]
    STAGE_COMPLETED_FIELD_NUMBER: _ClassVar[int]
    STAGE_FAILED_FIELD_NUMBER: _ClassVar[int]
    STAGE_RELEASED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_PRUNED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    sequence: int
    stage: _fine_tuning_job_pb2.Stage
    attempt: int
    ordinal: int
    source: str
    event_time: _timestamp_pb2.Timestamp
    severity: Severity
    state_changed: StateChanged
    phase: Phase
    log: Log
    eval: Eval
    checkpoint: CheckpointSaved
    complete: Complete
    sample: _stage_result_pb2.InferenceSample
    resource_usage: ResourceUsage
    warning: Warning
    config_resolved: ConfigResolved
    artifact: ArtifactSaved
    restored: Restored
    stage_completed: StageCompleted
    stage_failed: StageFailed
    stage_released: StageReleased
    checkpoint_pruned: CheckpointPruned
    def __init__(self, job_id: _Optional[str] = ..., sequence: _Optional[int] = ..., stage: _Optional[_Union[_fine_tuning_job_pb2.Stage, str]] = ..., attempt: _Optional[int] = ..., ordinal: _Optional[int] = ..., source: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., severity: _Optional[_Union[Severity, str]] = ..., state_changed: _Optional[_Union[StateChanged, _Mapping]] = ..., phase: _Optional[_Union[Phase, _Mapping]] = ..., log: _Optional[_Union[Log, _Mapping]] = ..., eval: _Optional[_Union[Eval, _Mapping]] = ..., checkpoint: _Optional[_Union[CheckpointSaved, _Mapping]] = ..., complete: _Optional[_Union[Complete, _Mapping]] = ..., sample: _Optional[_Union[_stage_result_pb2.InferenceSample, _Mapping]] = ..., resource_usage: _Optional[_Union[ResourceUsage, _Mapping]] = ..., warning: _Optional[_Union[Warning, _Mapping]] = ..., config_resolved: _Optional[_Union[ConfigResolved, _Mapping]] = ..., artifact: _Optional[_Union[ArtifactSaved, _Mapping]] = ..., restored: _Optional[_Union[Restored, _Mapping]] = ..., stage_completed: _Optional[_Union[StageCompleted, _Mapping]] = ..., stage_failed: _Optional[_Union[StageFailed, _Mapping]] = ..., stage_released: _Optional[_Union[StageReleased, _Mapping]] = ..., checkpoint_pruned: _Optional[_Union[CheckpointPruned, _Mapping]] = ...) -> None: ...

class StateChanged(_message.Message):
    __slots__ = ("state", "stage", "reason", "message", "fault", "advice", "node_id")
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    state: _fine_tuning_job_pb2.JobState
    stage: _fine_tuning_job_pb2.Stage
    reason: str
    message: str
    fault: _fine_tuning_job_pb2.Fault
    advice: str
    node_id: str
    def __init__(self, state: _Optional[_Union[_fine_tuning_job_pb2.JobState, str]] = ..., stage: _Optional[_Union[_fine_tuning_job_pb2.Stage, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., fault: _Optional[_Union[_fine_tuning_job_pb2.Fault, str]] = ..., advice: _Optional[str] = ..., node_id: _Optional[str] = ...) -> None: ...

class Phase(_message.Message):
    __slots__ = ("name", "index", "count", "detail", "fraction")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    index: int
    count: int
    detail: str
    fraction: float
    def __init__(self, name: _Optional[str] = ..., index: _Optional[int] = ..., count: _Optional[int] = ..., detail: _Optional[str] = ..., fraction: _Optional[float] = ...) -> None: ...

class Log(_message.Message):
    __slots__ = ("step", "total_steps", "epoch", "loss", "learning_rate", "grad_norm", "tokens_per_second", "num_tokens", "eta_seconds", "elapsed_seconds", "extras", "samples_per_second", "padded_tokens_per_second", "seconds_per_step", "mfu", "data_seconds", "forward_seconds", "backward_seconds", "optimizer_seconds")
    class ExtrasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXTRAS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PADDED_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_PER_STEP_FIELD_NUMBER: _ClassVar[int]
    MFU_FIELD_NUMBER: _ClassVar[int]
    DATA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_SECONDS_FIELD_NUMBER: _ClassVar[int]
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
    extras: _containers.ScalarMap[str, float]
    samples_per_second: float
    padded_tokens_per_second: float
    seconds_per_step: float
    mfu: float
    data_seconds: float
    forward_seconds: float
    backward_seconds: float
    optimizer_seconds: float
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., epoch: _Optional[float] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., grad_norm: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., num_tokens: _Optional[int] = ..., eta_seconds: _Optional[float] = ..., elapsed_seconds: _Optional[float] = ..., extras: _Optional[_Mapping[str, float]] = ..., samples_per_second: _Optional[float] = ..., padded_tokens_per_second: _Optional[float] = ..., seconds_per_step: _Optional[float] = ..., mfu: _Optional[float] = ..., data_seconds: _Optional[float] = ..., forward_seconds: _Optional[float] = ..., backward_seconds: _Optional[float] = ..., optimizer_seconds: _Optional[float] = ...) -> None: ...

class Eval(_message.Message):
    __slots__ = ("step", "total_steps", "epoch", "eval_loss", "perplexity", "eval_runtime_seconds", "best", "evaluations_without_improvement", "extras")
    class ExtrasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    EVAL_RUNTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    EVALUATIONS_WITHOUT_IMPROVEMENT_FIELD_NUMBER: _ClassVar[int]
    EXTRAS_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    epoch: float
    eval_loss: float
    perplexity: float
    eval_runtime_seconds: float
    best: bool
    evaluations_without_improvement: int
    extras: _containers.ScalarMap[str, float]
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., epoch: _Optional[float] = ..., eval_loss: _Optional[float] = ..., perplexity: _Optional[float] = ..., eval_runtime_seconds: _Optional[float] = ..., best: bool = ..., evaluations_without_improvement: _Optional[int] = ..., extras: _Optional[_Mapping[str, float]] = ...) -> None: ...

class CheckpointSaved(_message.Message):
    __slots__ = ("step", "epoch", "path", "manifest_sha256", "size_bytes", "eval_loss", "best")
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    step: int
    epoch: float
    path: str
    manifest_sha256: str
    size_bytes: int
    eval_loss: float
    best: bool
    def __init__(self, step: _Optional[int] = ..., epoch: _Optional[float] = ..., path: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., eval_loss: _Optional[float] = ..., best: bool = ...) -> None: ...

class CheckpointPruned(_message.Message):
    __slots__ = ("step", "path")
    STEP_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    step: int
    path: str
    def __init__(self, step: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class Complete(_message.Message):
    __slots__ = ("total_steps", "best_metric", "best_step", "early_stopped", "train_loss", "train_runtime_seconds", "train_samples_per_second")
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    BEST_METRIC_FIELD_NUMBER: _ClassVar[int]
    BEST_STEP_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPED_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_RUNTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    total_steps: int
    best_metric: float
    best_step: int
    early_stopped: bool
    train_loss: float
    train_runtime_seconds: float
    train_samples_per_second: float
    def __init__(self, total_steps: _Optional[int] = ..., best_metric: _Optional[float] = ..., best_step: _Optional[int] = ..., early_stopped: bool = ..., train_loss: _Optional[float] = ..., train_runtime_seconds: _Optional[float] = ..., train_samples_per_second: _Optional[float] = ...) -> None: ...

class ResourceUsage(_message.Message):
    __slots__ = ("memory_bytes", "peak_memory_bytes", "cpu_cores", "gpus")
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    memory_bytes: int
    peak_memory_bytes: int
    cpu_cores: float
    gpus: _containers.RepeatedCompositeFieldContainer[GpuUsage]
    def __init__(self, memory_bytes: _Optional[int] = ..., peak_memory_bytes: _Optional[int] = ..., cpu_cores: _Optional[float] = ..., gpus: _Optional[_Iterable[_Union[GpuUsage, _Mapping]]] = ...) -> None: ...

class GpuUsage(_message.Message):
    __slots__ = ("index", "utilization", "memory_used_bytes", "temperature_celsius", "power_watts")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    index: int
    utilization: float
    memory_used_bytes: int
    temperature_celsius: float
    power_watts: float
    def __init__(self, index: _Optional[int] = ..., utilization: _Optional[float] = ..., memory_used_bytes: _Optional[int] = ..., temperature_celsius: _Optional[float] = ..., power_watts: _Optional[float] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("reason", "message", "advice")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    advice: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., advice: _Optional[str] = ...) -> None: ...

class ConfigResolved(_message.Message):
    __slots__ = ("resolved_spec", "resolutions")
    RESOLVED_SPEC_FIELD_NUMBER: _ClassVar[int]
    RESOLUTIONS_FIELD_NUMBER: _ClassVar[int]
    resolved_spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    resolutions: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.Resolution]
    def __init__(self, resolved_spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., resolutions: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.Resolution, _Mapping]]] = ...) -> None: ...

class ArtifactSaved(_message.Message):
    __slots__ = ("path", "kind", "sha256", "size_bytes", "media_type")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    path: str
    kind: str
    sha256: str
    size_bytes: int
    media_type: str
    def __init__(self, path: _Optional[str] = ..., kind: _Optional[str] = ..., sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., media_type: _Optional[str] = ...) -> None: ...

class Restored(_message.Message):
    __slots__ = ("checkpoint_step", "manifest_sha256", "first_step")
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    checkpoint_step: int
    manifest_sha256: str
    first_step: int
    def __init__(self, checkpoint_step: _Optional[int] = ..., manifest_sha256: _Optional[str] = ..., first_step: _Optional[int] = ...) -> None: ...

class StageCompleted(_message.Message):
    __slots__ = ("preflight", "training", "evaluation", "export")
    PREFLIGHT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    preflight: _stage_result_pb2.PreflightResult
    training: _stage_result_pb2.TrainingResult
    evaluation: _stage_result_pb2.EvaluationResult
    export: _stage_result_pb2.ExportResult
    def __init__(self, preflight: _Optional[_Union[_stage_result_pb2.PreflightResult, _Mapping]] = ..., training: _Optional[_Union[_stage_result_pb2.TrainingResult, _Mapping]] = ..., evaluation: _Optional[_Union[_stage_result_pb2.EvaluationResult, _Mapping]] = ..., export: _Optional[_Union[_stage_result_pb2.ExportResult, _Mapping]] = ...) -> None: ...

class StageFailed(_message.Message):
    __slots__ = ("fault", "reason", "message", "advice", "last_lines", "violations")
    FAULT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    LAST_LINES_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    fault: _fine_tuning_job_pb2.Fault
    reason: str
    message: str
    advice: str
    last_lines: _containers.RepeatedScalarFieldContainer[str]
    violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    def __init__(self, fault: _Optional[_Union[_fine_tuning_job_pb2.Fault, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., advice: _Optional[str] = ..., last_lines: _Optional[_Iterable[str]] = ..., violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class StageReleased(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...
