import datetime

from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class IntegrationState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INTEGRATION_STATE_UNSPECIFIED: _ClassVar[IntegrationState]
    INTEGRATION_STATE_PENDING: _ClassVar[IntegrationState]
    INTEGRATION_STATE_ACTIVE: _ClassVar[IntegrationState]
    INTEGRATION_STATE_RETRYING: _ClassVar[IntegrationState]
    INTEGRATION_STATE_DONE: _ClassVar[IntegrationState]
    INTEGRATION_STATE_FAILED: _ClassVar[IntegrationState]
INTEGRATION_STATE_UNSPECIFIED: IntegrationState
INTEGRATION_STATE_PENDING: IntegrationState
INTEGRATION_STATE_ACTIVE: IntegrationState
INTEGRATION_STATE_RETRYING: IntegrationState
INTEGRATION_STATE_DONE: IntegrationState
INTEGRATION_STATE_FAILED: IntegrationState

class Integration(_message.Message):
    __slots__ = ("id", "job_id", "spec", "kind", "state", "run_name", "run_url", "delivered_sequence", "failures", "last_error", "create_time", "update_time", "end_time")
    ID_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    RUN_URL_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LAST_ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    id: str
    job_id: str
    spec: _fine_tuning_job_spec_pb2.IntegrationSpec
    kind: str
    state: IntegrationState
    run_name: str
    run_url: str
    delivered_sequence: int
    failures: int
    last_error: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., job_id: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.IntegrationSpec, _Mapping]] = ..., kind: _Optional[str] = ..., state: _Optional[_Union[IntegrationState, str]] = ..., run_name: _Optional[str] = ..., run_url: _Optional[str] = ..., delivered_sequence: _Optional[int] = ..., failures: _Optional[int] = ..., last_error: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class DeliveryAttempt(_message.Message):
    __slots__ = ("number", "first_sequence", "last_sequence", "time", "duration_seconds", "http_status", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    HTTP_STATUS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    first_sequence: int
    last_sequence: int
    time: _timestamp_pb2.Timestamp
    duration_seconds: float
    http_status: int
    error: str
    def __init__(self, number: _Optional[int] = ..., first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., duration_seconds: _Optional[float] = ..., http_status: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
