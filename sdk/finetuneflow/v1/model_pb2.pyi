import datetime

from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_KIND_UNSPECIFIED: _ClassVar[ModelKind]
    MODEL_KIND_BASE: _ClassVar[ModelKind]
    MODEL_KIND_TUNED: _ClassVar[ModelKind]
MODEL_KIND_UNSPECIFIED: ModelKind
MODEL_KIND_BASE: ModelKind
MODEL_KIND_TUNED: ModelKind

class Model(_message.Message):
    __slots__ = ("id", "kind", "description", "revision", "base_model", "num_parameters", "context_length", "license", "create_time", "gate_decision", "shown_regression")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LICENSE_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    GATE_DECISION_FIELD_NUMBER: _ClassVar[int]
    SHOWN_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: ModelKind
    description: str
    revision: str
    base_model: str
    num_parameters: int
    context_length: int
    license: str
    create_time: _timestamp_pb2.Timestamp
    gate_decision: _stage_result_pb2.GateDecision
    shown_regression: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[ModelKind, str]] = ..., description: _Optional[str] = ..., revision: _Optional[str] = ..., base_model: _Optional[str] = ..., num_parameters: _Optional[int] = ..., context_length: _Optional[int] = ..., license: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., gate_decision: _Optional[_Union[_stage_result_pb2.GateDecision, str]] = ..., shown_regression: _Optional[str] = ...) -> None: ...
