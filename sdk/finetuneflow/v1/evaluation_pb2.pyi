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

class RowChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROW_CHANGE_UNSPECIFIED: _ClassVar[RowChange]
    ROW_CHANGE_IMPROVED: _ClassVar[RowChange]
    ROW_CHANGE_WORSENED: _ClassVar[RowChange]
    ROW_CHANGE_EQUAL: _ClassVar[RowChange]
ROW_CHANGE_UNSPECIFIED: RowChange
ROW_CHANGE_IMPROVED: RowChange
ROW_CHANGE_WORSENED: RowChange
ROW_CHANGE_EQUAL: RowChange

class Evaluation(_message.Message):
    __slots__ = ("id", "job_id", "result", "create_time", "model", "spec", "state", "reason", "message", "fault", "advice", "attempt", "failed_attempts", "progress", "last_sequence", "update_time", "end_time", "attempts", "max_attempts", "against", "data", "waiting")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FAILED_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    id: str
    job_id: str
    result: _stage_result_pb2.EvaluationResult
    create_time: _timestamp_pb2.Timestamp
    model: str
    spec: _fine_tuning_job_spec_pb2.EvaluationSpec
    state: _fine_tuning_job_pb2.JobState
    reason: str
    message: str
    fault: _fine_tuning_job_pb2.Fault
    advice: str
    attempt: int
    failed_attempts: int
    progress: _fine_tuning_job_pb2.Progress
    last_sequence: int
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    attempts: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.AttemptSummary]
    max_attempts: int
    against: str
    data: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_spec_pb2.DataSource]
    waiting: str
    def __init__(self, id: _Optional[str] = ..., job_id: _Optional[str] = ..., result: _Optional[_Union[_stage_result_pb2.EvaluationResult, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.EvaluationSpec, _Mapping]] = ..., state: _Optional[_Union[_fine_tuning_job_pb2.JobState, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., fault: _Optional[_Union[_fine_tuning_job_pb2.Fault, str]] = ..., advice: _Optional[str] = ..., attempt: _Optional[int] = ..., failed_attempts: _Optional[int] = ..., progress: _Optional[_Union[_fine_tuning_job_pb2.Progress, _Mapping]] = ..., last_sequence: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.AttemptSummary, _Mapping]]] = ..., max_attempts: _Optional[int] = ..., against: _Optional[str] = ..., data: _Optional[_Iterable[_Union[_fine_tuning_job_spec_pb2.DataSource, _Mapping]]] = ..., waiting: _Optional[str] = ...) -> None: ...

class EvaluationRow(_message.Message):
    __slots__ = ("index", "prompt", "expected", "base_answer", "tuned_answer", "base_loss", "tuned_loss", "num_trained_tokens", "base_metrics", "tuned_metrics", "changes", "source")
    class BaseMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class TunedMetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ChangesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: RowChange
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[RowChange, str]] = ...) -> None: ...
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    BASE_ANSWER_FIELD_NUMBER: _ClassVar[int]
    TUNED_ANSWER_FIELD_NUMBER: _ClassVar[int]
    BASE_LOSS_FIELD_NUMBER: _ClassVar[int]
    TUNED_LOSS_FIELD_NUMBER: _ClassVar[int]
    NUM_TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BASE_METRICS_FIELD_NUMBER: _ClassVar[int]
    TUNED_METRICS_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    index: int
    prompt: str
    expected: str
    base_answer: str
    tuned_answer: str
    base_loss: float
    tuned_loss: float
    num_trained_tokens: int
    base_metrics: _containers.ScalarMap[str, float]
    tuned_metrics: _containers.ScalarMap[str, float]
    changes: _containers.ScalarMap[str, RowChange]
    source: str
    def __init__(self, index: _Optional[int] = ..., prompt: _Optional[str] = ..., expected: _Optional[str] = ..., base_answer: _Optional[str] = ..., tuned_answer: _Optional[str] = ..., base_loss: _Optional[float] = ..., tuned_loss: _Optional[float] = ..., num_trained_tokens: _Optional[int] = ..., base_metrics: _Optional[_Mapping[str, float]] = ..., tuned_metrics: _Optional[_Mapping[str, float]] = ..., changes: _Optional[_Mapping[str, RowChange]] = ..., source: _Optional[str] = ...) -> None: ...
