import datetime

from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import integration_pb2 as _integration_pb2
from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_VALIDATING: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_PAUSING: _ClassVar[JobState]
    JOB_STATE_PAUSED: _ClassVar[JobState]
    JOB_STATE_CANCELLING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]

class Stage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STAGE_UNSPECIFIED: _ClassVar[Stage]
    STAGE_PREFLIGHT: _ClassVar[Stage]
    STAGE_TRAINING: _ClassVar[Stage]
    STAGE_EVALUATION: _ClassVar[Stage]
    STAGE_EXPORT: _ClassVar[Stage]

class Fault(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAULT_UNSPECIFIED: _ClassVar[Fault]
    FAULT_USER_ERROR: _ClassVar[Fault]
    FAULT_SYSTEM_ERROR: _ClassVar[Fault]
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_VALIDATING: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_PAUSING: JobState
JOB_STATE_PAUSED: JobState
JOB_STATE_CANCELLING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState
STAGE_UNSPECIFIED: Stage
STAGE_PREFLIGHT: Stage
STAGE_TRAINING: Stage
STAGE_EVALUATION: Stage
STAGE_EXPORT: Stage
FAULT_UNSPECIFIED: Fault
FAULT_USER_ERROR: Fault
FAULT_SYSTEM_ERROR: Fault

class FineTuningJob(_message.Message):
    __slots__ = ("id", "spec", "resolved_spec", "resolutions", "state", "stage", "reason", "message", "fault", "advice", "attempt", "failed_attempts", "progress", "last_sequence", "tuned_model", "evaluation_id", "export_id", "preflight", "training", "create_time", "update_time", "end_time", "attempts", "waiting", "lineage", "gate_decision", "shown_regression", "integrations")
    ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_SPEC_FIELD_NUMBER: _ClassVar[int]
    RESOLUTIONS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILED_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TUNED_MODEL_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_ID_FIELD_NUMBER: _ClassVar[int]
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    PREFLIGHT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    GATE_DECISION_FIELD_NUMBER: _ClassVar[int]
    SHOWN_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    id: str
    spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    resolved_spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    resolutions: _containers.RepeatedCompositeFieldContainer[Resolution]
    state: JobState
    stage: Stage
    reason: str
    message: str
    fault: Fault
    advice: str
    attempt: int
    failed_attempts: int
    progress: Progress
    last_sequence: int
    tuned_model: str
    evaluation_id: str
    export_id: str
    preflight: _stage_result_pb2.PreflightResult
    training: _stage_result_pb2.TrainingResult
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    attempts: _containers.RepeatedCompositeFieldContainer[AttemptSummary]
    waiting: str
    lineage: _containers.RepeatedCompositeFieldContainer[AdapterStart]
    gate_decision: _stage_result_pb2.GateDecision
    shown_regression: str
    integrations: _containers.RepeatedCompositeFieldContainer[_integration_pb2.Integration]
    def __init__(self, id: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., resolved_spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., resolutions: _Optional[_Iterable[_Union[Resolution, _Mapping]]] = ..., state: _Optional[_Union[JobState, str]] = ..., stage: _Optional[_Union[Stage, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., fault: _Optional[_Union[Fault, str]] = ..., advice: _Optional[str] = ..., attempt: _Optional[int] = ..., failed_attempts: _Optional[int] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., last_sequence: _Optional[int] = ..., tuned_model: _Optional[str] = ..., evaluation_id: _Optional[str] = ..., export_id: _Optional[str] = ..., preflight: _Optional[_Union[_stage_result_pb2.PreflightResult, _Mapping]] = ..., training: _Optional[_Union[_stage_result_pb2.TrainingResult, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[AttemptSummary, _Mapping]]] = ..., waiting: _Optional[str] = ..., lineage: _Optional[_Iterable[_Union[AdapterStart, _Mapping]]] = ..., gate_decision: _Optional[_Union[_stage_result_pb2.GateDecision, str]] = ..., shown_regression: _Optional[str] = ..., integrations: _Optional[_Iterable[_Union[_integration_pb2.Integration, _Mapping]]] = ...) -> None: ...

class AdapterStart(_message.Message):
    __slots__ = ("start_from", "start_mode", "manifest_sha256")
    START_FROM_FIELD_NUMBER: _ClassVar[int]
    START_MODE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    start_from: str
    start_mode: _fine_tuning_job_spec_pb2.StartMode
    manifest_sha256: str
    def __init__(self, start_from: _Optional[str] = ..., start_mode: _Optional[_Union[_fine_tuning_job_spec_pb2.StartMode, str]] = ..., manifest_sha256: _Optional[str] = ...) -> None: ...

class TrainedData(_message.Message):
    __slots__ = ("datasets", "split_key")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_KEY_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedScalarFieldContainer[str]
    split_key: str
    def __init__(self, datasets: _Optional[_Iterable[str]] = ..., split_key: _Optional[str] = ...) -> None: ...

class AttemptSummary(_message.Message):
    __slots__ = ("stage", "attempt", "state", "node_id", "outcome", "reason", "message", "counted", "create_time", "claim_time", "end_time")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    COUNTED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    CLAIM_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    stage: Stage
    attempt: int
    state: str
    node_id: str
    outcome: str
    reason: str
    message: str
    counted: bool
    create_time: _timestamp_pb2.Timestamp
    claim_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, stage: _Optional[_Union[Stage, str]] = ..., attempt: _Optional[int] = ..., state: _Optional[str] = ..., node_id: _Optional[str] = ..., outcome: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., counted: bool = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., claim_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Resolution(_message.Message):
    __slots__ = ("field", "value", "reason")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    field: str
    value: str
    reason: str
    def __init__(self, field: _Optional[str] = ..., value: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("step", "total_steps", "epoch", "loss", "eval_loss", "best_eval_loss", "best_step", "tokens_per_second", "eta_seconds", "phase", "phase_index", "phase_count", "phase_fraction")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_STEP_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_INDEX_FIELD_NUMBER: _ClassVar[int]
    PHASE_COUNT_FIELD_NUMBER: _ClassVar[int]
    PHASE_FRACTION_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    epoch: float
    loss: float
    eval_loss: float
    best_eval_loss: float
    best_step: int
    tokens_per_second: float
    eta_seconds: float
    phase: str
    phase_index: int
    phase_count: int
    phase_fraction: float
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., epoch: _Optional[float] = ..., loss: _Optional[float] = ..., eval_loss: _Optional[float] = ..., best_eval_loss: _Optional[float] = ..., best_step: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., phase: _Optional[str] = ..., phase_index: _Optional[int] = ..., phase_count: _Optional[int] = ..., phase_fraction: _Optional[float] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("job_id", "step", "epoch", "attempt", "path", "manifest_sha256", "size_bytes", "eval_loss", "best", "create_time")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    step: int
    epoch: float
    attempt: int
    path: str
    manifest_sha256: str
    size_bytes: int
    eval_loss: float
    best: bool
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, job_id: _Optional[str] = ..., step: _Optional[int] = ..., epoch: _Optional[float] = ..., attempt: _Optional[int] = ..., path: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., size_bytes: _Optional[int] = ..., eval_loss: _Optional[float] = ..., best: bool = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
