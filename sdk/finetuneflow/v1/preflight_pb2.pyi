from finetuneflow.v1 import event_pb2 as _event_pb2
from finetuneflow.v1 import validation_pb2 as _validation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PreflightReport(_message.Message):
    __slots__ = ("verdict", "findings", "improvements", "validation")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    IMPROVEMENTS_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    verdict: _validation_pb2.ValidationVerdict
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    improvements: _containers.RepeatedCompositeFieldContainer[Improvement]
    validation: _validation_pb2.ValidationReport
    def __init__(self, verdict: _Optional[_Union[_validation_pb2.ValidationVerdict, str]] = ..., findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., improvements: _Optional[_Iterable[_Union[Improvement, _Mapping]]] = ..., validation: _Optional[_Union[_validation_pb2.ValidationReport, _Mapping]] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("severity", "reason", "message", "advice", "field", "violations")
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ADVICE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    severity: _validation_pb2.ProblemSeverity
    reason: str
    message: str
    advice: str
    field: str
    violations: _containers.RepeatedCompositeFieldContainer[_event_pb2.FieldViolation]
    def __init__(self, severity: _Optional[_Union[_validation_pb2.ProblemSeverity, str]] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., advice: _Optional[str] = ..., field: _Optional[str] = ..., violations: _Optional[_Iterable[_Union[_event_pb2.FieldViolation, _Mapping]]] = ...) -> None: ...

class Improvement(_message.Message):
    __slots__ = ("field", "current", "suggested", "reason")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    field: str
    current: str
    suggested: str
    reason: str
    def __init__(self, field: _Optional[str] = ..., current: _Optional[str] = ..., suggested: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...
