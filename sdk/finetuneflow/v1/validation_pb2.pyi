from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ValidationVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    VALIDATION_VERDICT_UNSPECIFIED: _ClassVar[ValidationVerdict]
    VALIDATION_VERDICT_OK: _ClassVar[ValidationVerdict]
    VALIDATION_VERDICT_WARNINGS: _ClassVar[ValidationVerdict]
    VALIDATION_VERDICT_REFUSED: _ClassVar[ValidationVerdict]

class ProblemSeverity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PROBLEM_SEVERITY_UNSPECIFIED: _ClassVar[ProblemSeverity]
    PROBLEM_SEVERITY_WARNING: _ClassVar[ProblemSeverity]
    PROBLEM_SEVERITY_ERROR: _ClassVar[ProblemSeverity]
VALIDATION_VERDICT_UNSPECIFIED: ValidationVerdict
VALIDATION_VERDICT_OK: ValidationVerdict
VALIDATION_VERDICT_WARNINGS: ValidationVerdict
VALIDATION_VERDICT_REFUSED: ValidationVerdict
PROBLEM_SEVERITY_UNSPECIFIED: ProblemSeverity
PROBLEM_SEVERITY_WARNING: ProblemSeverity
PROBLEM_SEVERITY_ERROR: ProblemSeverity

class ValidationReport(_message.Message):
    __slots__ = ("verdict", "problems", "counts", "num_problems", "training_data", "evaluation_data", "job")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_DATA_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    verdict: ValidationVerdict
    problems: _containers.RepeatedCompositeFieldContainer[RowProblem]
    counts: _containers.RepeatedCompositeFieldContainer[ProblemCount]
    num_problems: int
    training_data: _stage_result_pb2.DataStatistics
    evaluation_data: _stage_result_pb2.DataStatistics
    job: JobFigures
    def __init__(self, verdict: _Optional[_Union[ValidationVerdict, str]] = ..., problems: _Optional[_Iterable[_Union[RowProblem, _Mapping]]] = ..., counts: _Optional[_Iterable[_Union[ProblemCount, _Mapping]]] = ..., num_problems: _Optional[int] = ..., training_data: _Optional[_Union[_stage_result_pb2.DataStatistics, _Mapping]] = ..., evaluation_data: _Optional[_Union[_stage_result_pb2.DataStatistics, _Mapping]] = ..., job: _Optional[_Union[JobFigures, _Mapping]] = ...) -> None: ...

class RowProblem(_message.Message):
    __slots__ = ("row", "column", "reason", "message", "source", "severity")
    ROW_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    row: int
    column: str
    reason: str
    message: str
    source: str
    severity: ProblemSeverity
    def __init__(self, row: _Optional[int] = ..., column: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., source: _Optional[str] = ..., severity: _Optional[_Union[ProblemSeverity, str]] = ...) -> None: ...

class ProblemCount(_message.Message):
    __slots__ = ("source", "reason", "severity", "count")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    source: str
    reason: str
    severity: ProblemSeverity
    count: int
    def __init__(self, source: _Optional[str] = ..., reason: _Optional[str] = ..., severity: _Optional[_Union[ProblemSeverity, str]] = ..., count: _Optional[int] = ...) -> None: ...

class JobFigures(_message.Message):
    __slots__ = ("tokens_per_epoch", "total_steps", "total_steps_packed", "packing_efficiency", "num_epochs", "num_packed_sequences", "num_rows")
    TOKENS_PER_EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_PACKED_FIELD_NUMBER: _ClassVar[int]
    PACKING_EFFICIENCY_FIELD_NUMBER: _ClassVar[int]
    NUM_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    NUM_PACKED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    tokens_per_epoch: int
    total_steps: int
    total_steps_packed: int
    packing_efficiency: float
    num_epochs: float
    num_packed_sequences: int
    num_rows: int
    def __init__(self, tokens_per_epoch: _Optional[int] = ..., total_steps: _Optional[int] = ..., total_steps_packed: _Optional[int] = ..., packing_efficiency: _Optional[float] = ..., num_epochs: _Optional[float] = ..., num_packed_sequences: _Optional[int] = ..., num_rows: _Optional[int] = ...) -> None: ...
