import datetime

from finetuneflow.v1 import fine_tuning_job_pb2 as _fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Export(_message.Message):
    __slots__ = ("id", "job_id", "formats", "result", "create_time", "model", "spec", "state", "reason", "message", "fault", "advice", "attempt", "failed_attempts", "progress", "last_sequence", "update_time", "end_time", "attempts", "max_attempts", "waiting")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
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
    WAITING_FIELD_NUMBER: _ClassVar[int]
    id: str
    job_id: str
    formats: _containers.RepeatedScalarFieldContainer[_fine_tuning_job_spec_pb2.ExportFormat]
    result: _stage_result_pb2.ExportResult
    create_time: _timestamp_pb2.Timestamp
    model: str
    spec: _fine_tuning_job_spec_pb2.ExportSpec
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
    waiting: str
    def __init__(self, id: _Optional[str] = ..., job_id: _Optional[str] = ..., formats: _Optional[_Iterable[_Union[_fine_tuning_job_spec_pb2.ExportFormat, str]]] = ..., result: _Optional[_Union[_stage_result_pb2.ExportResult, _Mapping]] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., model: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.ExportSpec, _Mapping]] = ..., state: _Optional[_Union[_fine_tuning_job_pb2.JobState, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., fault: _Optional[_Union[_fine_tuning_job_pb2.Fault, str]] = ..., advice: _Optional[str] = ..., attempt: _Optional[int] = ..., failed_attempts: _Optional[int] = ..., progress: _Optional[_Union[_fine_tuning_job_pb2.Progress, _Mapping]] = ..., last_sequence: _Optional[int] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., attempts: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.AttemptSummary, _Mapping]]] = ..., max_attempts: _Optional[int] = ..., waiting: _Optional[str] = ...) -> None: ...
