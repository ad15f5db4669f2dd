import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Tenant(_message.Message):
    __slots__ = ("name", "display_name", "disabled", "create_time", "limits")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    DISABLED_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    name: str
    display_name: str
    disabled: bool
    create_time: _timestamp_pb2.Timestamp
    limits: TenantLimits
    def __init__(self, name: _Optional[str] = ..., display_name: _Optional[str] = ..., disabled: bool = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., limits: _Optional[_Union[TenantLimits, _Mapping]] = ...) -> None: ...

class TenantLimits(_message.Message):
    __slots__ = ("max_live_jobs", "max_datasets", "max_stored_bytes", "max_gpu_seconds_per_day")
    MAX_LIVE_JOBS_FIELD_NUMBER: _ClassVar[int]
    MAX_DATASETS_FIELD_NUMBER: _ClassVar[int]
    MAX_STORED_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_GPU_SECONDS_PER_DAY_FIELD_NUMBER: _ClassVar[int]
    max_live_jobs: int
    max_datasets: int
    max_stored_bytes: int
    max_gpu_seconds_per_day: int
    def __init__(self, max_live_jobs: _Optional[int] = ..., max_datasets: _Optional[int] = ..., max_stored_bytes: _Optional[int] = ..., max_gpu_seconds_per_day: _Optional[int] = ...) -> None: ...
