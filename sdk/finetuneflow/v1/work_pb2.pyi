import datetime

from finetuneflow.v1 import dataset_pb2 as _dataset_pb2
from finetuneflow.v1 import estimate_pb2 as _estimate_pb2
from finetuneflow.v1 import event_pb2 as _event_pb2
from finetuneflow.v1 import fine_tuning_job_pb2 as _fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import hardware_pb2 as _hardware_pb2
from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Directive(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DIRECTIVE_UNSPECIFIED: _ClassVar[Directive]
    DIRECTIVE_RUN: _ClassVar[Directive]
    DIRECTIVE_PAUSE: _ClassVar[Directive]
    DIRECTIVE_CANCEL: _ClassVar[Directive]
    DIRECTIVE_STOP: _ClassVar[Directive]
DIRECTIVE_UNSPECIFIED: Directive
DIRECTIVE_RUN: Directive
DIRECTIVE_PAUSE: Directive
DIRECTIVE_CANCEL: Directive
DIRECTIVE_STOP: Directive

class WorkItem(_message.Message):
    __slots__ = ("job_id", "stage", "attempt")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stage: _fine_tuning_job_pb2.Stage
    attempt: int
    def __init__(self, job_id: _Optional[str] = ..., stage: _Optional[_Union[_fine_tuning_job_pb2.Stage, str]] = ..., attempt: _Optional[int] = ...) -> None: ...

class ClaimRequest(_message.Message):
    __slots__ = ("job_id", "stage", "attempt", "claim_id", "node_id", "take_next", "public_key")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CLAIM_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    TAKE_NEXT_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stage: _fine_tuning_job_pb2.Stage
    attempt: int
    claim_id: str
    node_id: str
    take_next: bool
    public_key: bytes
    def __init__(self, job_id: _Optional[str] = ..., stage: _Optional[_Union[_fine_tuning_job_pb2.Stage, str]] = ..., attempt: _Optional[int] = ..., claim_id: _Optional[str] = ..., node_id: _Optional[str] = ..., take_next: bool = ..., public_key: _Optional[bytes] = ...) -> None: ...

class ClaimResponse(_message.Message):
    __slots__ = ("assignment", "refused", "instead")
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    INSTEAD_FIELD_NUMBER: _ClassVar[int]
    assignment: Assignment
    refused: ClaimRefused
    instead: WorkItem
    def __init__(self, assignment: _Optional[_Union[Assignment, _Mapping]] = ..., refused: _Optional[_Union[ClaimRefused, _Mapping]] = ..., instead: _Optional[_Union[WorkItem, _Mapping]] = ...) -> None: ...

class ClaimRefused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("job_id", "tenant", "stage", "attempt", "claim_id", "spec", "resolved_spec", "datasets", "checkpoints", "preflight", "training", "evaluation", "metrics", "prior_training_seconds", "create_time", "shards", "hardware", "fine_tuning_job_id", "merged_spec", "sealed_secrets", "start", "measurements", "comparison", "judges", "observed")
    class SealedSecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    CLAIM_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    RESOLVED_SPEC_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    PREFLIGHT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PRIOR_TRAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    FINE_TUNING_JOB_ID_FIELD_NUMBER: _ClassVar[int]
    MERGED_SPEC_FIELD_NUMBER: _ClassVar[int]
    SEALED_SECRETS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    JUDGES_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    tenant: str
    stage: _fine_tuning_job_pb2.Stage
    attempt: int
    claim_id: str
    spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    resolved_spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    datasets: _containers.RepeatedCompositeFieldContainer[_dataset_pb2.Dataset]
    checkpoints: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.Checkpoint]
    preflight: _stage_result_pb2.PreflightResult
    training: _stage_result_pb2.TrainingResult
    evaluation: _stage_result_pb2.EvaluationResult
    metrics: _containers.RepeatedCompositeFieldContainer[MetricSeries]
    prior_training_seconds: float
    create_time: _timestamp_pb2.Timestamp
    shards: _containers.RepeatedCompositeFieldContainer[StoredShards]
    hardware: _hardware_pb2.Hardware
    fine_tuning_job_id: str
    merged_spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    sealed_secrets: _containers.ScalarMap[str, bytes]
    start: TrainingStart
    measurements: _containers.RepeatedCompositeFieldContainer[StoredFile]
    comparison: Comparison
    judges: _containers.RepeatedCompositeFieldContainer[ComparedModel]
    observed: _containers.RepeatedCompositeFieldContainer[_estimate_pb2.ObservedSpeed]
    def __init__(self, job_id: _Optional[str] = ..., tenant: _Optional[str] = ..., stage: _Optional[_Union[_fine_tuning_job_pb2.Stage, str]] = ..., attempt: _Optional[int] = ..., claim_id: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., resolved_spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., datasets: _Optional[_Iterable[_Union[_dataset_pb2.Dataset, _Mapping]]] = ..., checkpoints: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.Checkpoint, _Mapping]]] = ..., preflight: _Optional[_Union[_stage_result_pb2.PreflightResult, _Mapping]] = ..., training: _Optional[_Union[_stage_result_pb2.TrainingResult, _Mapping]] = ..., evaluation: _Optional[_Union[_stage_result_pb2.EvaluationResult, _Mapping]] = ..., metrics: _Optional[_Iterable[_Union[MetricSeries, _Mapping]]] = ..., prior_training_seconds: _Optional[float] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., shards: _Optional[_Iterable[_Union[StoredShards, _Mapping]]] = ..., hardware: _Optional[_Union[_hardware_pb2.Hardware, _Mapping]] = ..., fine_tuning_job_id: _Optional[str] = ..., merged_spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., sealed_secrets: _Optional[_Mapping[str, bytes]] = ..., start: _Optional[_Union[TrainingStart, _Mapping]] = ..., measurements: _Optional[_Iterable[_Union[StoredFile, _Mapping]]] = ..., comparison: _Optional[_Union[Comparison, _Mapping]] = ..., judges: _Optional[_Iterable[_Union[ComparedModel, _Mapping]]] = ..., observed: _Optional[_Iterable[_Union[_estimate_pb2.ObservedSpeed, _Mapping]]] = ...) -> None: ...

class Comparison(_message.Message):
    __slots__ = ("model", "against", "data")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    model: ComparedModel
    against: ComparedModel
    data: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_spec_pb2.DataSource]
    def __init__(self, model: _Optional[_Union[ComparedModel, _Mapping]] = ..., against: _Optional[_Union[ComparedModel, _Mapping]] = ..., data: _Optional[_Iterable[_Union[_fine_tuning_job_spec_pb2.DataSource, _Mapping]]] = ...) -> None: ...

class ComparedModel(_message.Message):
    __slots__ = ("id", "base_model", "checkpoint", "trained_with")
    ID_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_WITH_FIELD_NUMBER: _ClassVar[int]
    id: str
    base_model: _stage_result_pb2.BaseModelIdentity
    checkpoint: _fine_tuning_job_pb2.Checkpoint
    trained_with: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    def __init__(self, id: _Optional[str] = ..., base_model: _Optional[_Union[_stage_result_pb2.BaseModelIdentity, _Mapping]] = ..., checkpoint: _Optional[_Union[_fine_tuning_job_pb2.Checkpoint, _Mapping]] = ..., trained_with: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ...) -> None: ...

class StoredFile(_message.Message):
    __slots__ = ("path", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    sha256: str
    def __init__(self, path: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class TrainingStart(_message.Message):
    __slots__ = ("checkpoint", "rank", "base_weights_sha256", "lineage", "dataset", "trained_data", "base_tokenizer_path")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    BASE_WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DATA_FIELD_NUMBER: _ClassVar[int]
    BASE_TOKENIZER_PATH_FIELD_NUMBER: _ClassVar[int]
    checkpoint: _fine_tuning_job_pb2.Checkpoint
    rank: int
    base_weights_sha256: str
    lineage: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.AdapterStart]
    dataset: _dataset_pb2.Dataset
    trained_data: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.TrainedData]
    base_tokenizer_path: str
    def __init__(self, checkpoint: _Optional[_Union[_fine_tuning_job_pb2.Checkpoint, _Mapping]] = ..., rank: _Optional[int] = ..., base_weights_sha256: _Optional[str] = ..., lineage: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.AdapterStart, _Mapping]]] = ..., dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ..., trained_data: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.TrainedData, _Mapping]]] = ..., base_tokenizer_path: _Optional[str] = ...) -> None: ...

class StoredShards(_message.Message):
    __slots__ = ("content_key", "path", "manifest_sha256")
    CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    content_key: str
    path: str
    manifest_sha256: str
    def __init__(self, content_key: _Optional[str] = ..., path: _Optional[str] = ..., manifest_sha256: _Optional[str] = ...) -> None: ...

class MetricSeries(_message.Message):
    __slots__ = ("name", "points")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    points: _containers.RepeatedCompositeFieldContainer[MetricPoint]
    def __init__(self, name: _Optional[str] = ..., points: _Optional[_Iterable[_Union[MetricPoint, _Mapping]]] = ...) -> None: ...

class MetricPoint(_message.Message):
    __slots__ = ("step", "value", "epoch", "sequence")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    step: int
    value: float
    epoch: float
    sequence: int
    def __init__(self, step: _Optional[int] = ..., value: _Optional[float] = ..., epoch: _Optional[float] = ..., sequence: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("job_id", "claim_id", "first_ordinal", "events")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    CLAIM_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    claim_id: str
    first_ordinal: int
    events: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, job_id: _Optional[str] = ..., claim_id: _Optional[str] = ..., first_ordinal: _Optional[int] = ..., events: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ("next_ordinal", "directive", "message")
    NEXT_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    next_ordinal: int
    directive: Directive
    message: str
    def __init__(self, next_ordinal: _Optional[int] = ..., directive: _Optional[_Union[Directive, str]] = ..., message: _Optional[str] = ...) -> None: ...

class EventRun(_message.Message):
    __slots__ = ("events",)
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ...) -> None: ...

class Node(_message.Message):
    __slots__ = ("id", "service", "address", "version", "pool", "slots", "runs", "hardware", "draining", "start_time", "warm_models", "harness_tasks", "gguf_types")
    ID_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    WARM_MODELS_FIELD_NUMBER: _ClassVar[int]
    HARNESS_TASKS_FIELD_NUMBER: _ClassVar[int]
    GGUF_TYPES_FIELD_NUMBER: _ClassVar[int]
    id: str
    service: str
    address: str
    version: str
    pool: str
    slots: int
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    hardware: _hardware_pb2.Hardware
    draining: bool
    start_time: _timestamp_pb2.Timestamp
    warm_models: _containers.RepeatedScalarFieldContainer[str]
    harness_tasks: _containers.RepeatedScalarFieldContainer[str]
    gguf_types: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., service: _Optional[str] = ..., address: _Optional[str] = ..., version: _Optional[str] = ..., pool: _Optional[str] = ..., slots: _Optional[int] = ..., runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., hardware: _Optional[_Union[_hardware_pb2.Hardware, _Mapping]] = ..., draining: bool = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., warm_models: _Optional[_Iterable[str]] = ..., harness_tasks: _Optional[_Iterable[str]] = ..., gguf_types: _Optional[_Iterable[str]] = ...) -> None: ...

class Run(_message.Message):
    __slots__ = ("job_id", "stage", "attempt", "start_time", "spooled_events")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    SPOOLED_EVENTS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    stage: _fine_tuning_job_pb2.Stage
    attempt: int
    start_time: _timestamp_pb2.Timestamp
    spooled_events: int
    def __init__(self, job_id: _Optional[str] = ..., stage: _Optional[_Union[_fine_tuning_job_pb2.Stage, str]] = ..., attempt: _Optional[int] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., spooled_events: _Optional[int] = ...) -> None: ...
