from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FitVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIT_VERDICT_UNSPECIFIED: _ClassVar[FitVerdict]
    FIT_VERDICT_COMFORTABLE: _ClassVar[FitVerdict]
    FIT_VERDICT_TIGHT: _ClassVar[FitVerdict]
    FIT_VERDICT_IMPOSSIBLE: _ClassVar[FitVerdict]
FIT_VERDICT_UNSPECIFIED: FitVerdict
FIT_VERDICT_COMFORTABLE: FitVerdict
FIT_VERDICT_TIGHT: FitVerdict
FIT_VERDICT_IMPOSSIBLE: FitVerdict

class ResourceEstimate(_message.Message):
    __slots__ = ("memory", "memory_total_bytes", "memory_upper_bytes", "verdict", "duration_seconds", "cost")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UPPER_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    memory: _containers.RepeatedCompositeFieldContainer[MemoryComponent]
    memory_total_bytes: int
    memory_upper_bytes: int
    verdict: FitVerdict
    duration_seconds: float
    cost: float
    def __init__(self, memory: _Optional[_Iterable[_Union[MemoryComponent, _Mapping]]] = ..., memory_total_bytes: _Optional[int] = ..., memory_upper_bytes: _Optional[int] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., duration_seconds: _Optional[float] = ..., cost: _Optional[float] = ...) -> None: ...

class MemoryComponent(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Recommendation(_message.Message):
    __slots__ = ("method", "reason", "verdict", "adjustments", "warnings", "alternatives", "estimate")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ADJUSTMENTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    method: _fine_tuning_job_spec_pb2.TrainingMethod
    reason: str
    verdict: FitVerdict
    adjustments: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    warnings: _containers.RepeatedScalarFieldContainer[str]
    alternatives: _containers.RepeatedScalarFieldContainer[str]
    estimate: ResourceEstimate
    def __init__(self, method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., reason: _Optional[str] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., adjustments: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., alternatives: _Optional[_Iterable[str]] = ..., estimate: _Optional[_Union[ResourceEstimate, _Mapping]] = ...) -> None: ...
