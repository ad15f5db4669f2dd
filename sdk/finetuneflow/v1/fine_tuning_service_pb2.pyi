from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import event_pb2 as _event_pb2
from finetuneflow.v1 import fine_tuning_job_pb2 as _fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import preflight_pb2 as _preflight_pb2
from finetuneflow.v1 import work_pb2 as _work_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateFineTuningJobRequest(_message.Message):
    __slots__ = ("spec", "request_id", "validate_only")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    request_id: str
    validate_only: bool
    def __init__(self, spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., validate_only: bool = ...) -> None: ...

class CreateFineTuningJobResponse(_message.Message):
    __slots__ = ("fine_tuning_job", "report")
    FINE_TUNING_JOB_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    fine_tuning_job: _fine_tuning_job_pb2.FineTuningJob
    report: _preflight_pb2.PreflightReport
    def __init__(self, fine_tuning_job: _Optional[_Union[_fine_tuning_job_pb2.FineTuningJob, _Mapping]] = ..., report: _Optional[_Union[_preflight_pb2.PreflightReport, _Mapping]] = ...) -> None: ...

class GetFineTuningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class GetFineTuningJobResponse(_message.Message):
    __slots__ = ("fine_tuning_job",)
    FINE_TUNING_JOB_FIELD_NUMBER: _ClassVar[int]
    fine_tuning_job: _fine_tuning_job_pb2.FineTuningJob
    def __init__(self, fine_tuning_job: _Optional[_Union[_fine_tuning_job_pb2.FineTuningJob, _Mapping]] = ...) -> None: ...

class ListFineTuningJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "states", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    states: _containers.RepeatedScalarFieldContainer[_fine_tuning_job_pb2.JobState]
    labels: _containers.ScalarMap[str, str]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.JobState, str]]] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ListFineTuningJobsResponse(_message.Message):
    __slots__ = ("fine_tuning_jobs", "next_page_token")
    FINE_TUNING_JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    fine_tuning_jobs: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.FineTuningJob]
    next_page_token: str
    def __init__(self, fine_tuning_jobs: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.FineTuningJob, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelFineTuningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class CancelFineTuningJobResponse(_message.Message):
    __slots__ = ("fine_tuning_job",)
    FINE_TUNING_JOB_FIELD_NUMBER: _ClassVar[int]
    fine_tuning_job: _fine_tuning_job_pb2.FineTuningJob
    def __init__(self, fine_tuning_job: _Optional[_Union[_fine_tuning_job_pb2.FineTuningJob, _Mapping]] = ...) -> None: ...

class PauseFineTuningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class PauseFineTuningJobResponse(_message.Message):
    __slots__ = ("fine_tuning_job",)
    FINE_TUNING_JOB_FIELD_NUMBER: _ClassVar[int]
    fine_tuning_job: _fine_tuning_job_pb2.FineTuningJob
    def __init__(self, fine_tuning_job: _Optional[_Union[_fine_tuning_job_pb2.FineTuningJob, _Mapping]] = ...) -> None: ...

class ResumeFineTuningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ResumeFineTuningJobResponse(_message.Message):
    __slots__ = ("fine_tuning_job",)
    FINE_TUNING_JOB_FIELD_NUMBER: _ClassVar[int]
    fine_tuning_job: _fine_tuning_job_pb2.FineTuningJob
    def __init__(self, fine_tuning_job: _Optional[_Union[_fine_tuning_job_pb2.FineTuningJob, _Mapping]] = ...) -> None: ...

class DeleteFineTuningJobRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class DeleteFineTuningJobResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchFineTuningJobRequest(_message.Message):
    __slots__ = ("job_id", "after_sequence", "kinds", "min_severity")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SEVERITY_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_sequence: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    min_severity: _event_pb2.Severity
    def __init__(self, job_id: _Optional[str] = ..., after_sequence: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ..., min_severity: _Optional[_Union[_event_pb2.Severity, str]] = ...) -> None: ...

class WatchFineTuningJobResponse(_message.Message):
    __slots__ = ("events", "through_sequence")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    through_sequence: int
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ..., through_sequence: _Optional[int] = ...) -> None: ...

class ListFineTuningJobEventsRequest(_message.Message):
    __slots__ = ("job_id", "after_sequence", "page_size", "kinds")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    after_sequence: int
    page_size: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, job_id: _Optional[str] = ..., after_sequence: _Optional[int] = ..., page_size: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class ListFineTuningJobEventsResponse(_message.Message):
    __slots__ = ("events", "through_sequence")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    through_sequence: int
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ..., through_sequence: _Optional[int] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("job_id",)
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    def __init__(self, job_id: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("checkpoints",)
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.Checkpoint]
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.Checkpoint, _Mapping]]] = ...) -> None: ...

class GetMetricsRequest(_message.Message):
    __slots__ = ("job_id", "names", "max_points")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    MAX_POINTS_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    names: _containers.RepeatedScalarFieldContainer[str]
    max_points: int
    def __init__(self, job_id: _Optional[str] = ..., names: _Optional[_Iterable[str]] = ..., max_points: _Optional[int] = ...) -> None: ...

class GetMetricsResponse(_message.Message):
    __slots__ = ("series",)
    SERIES_FIELD_NUMBER: _ClassVar[int]
    series: _containers.RepeatedCompositeFieldContainer[_work_pb2.MetricSeries]
    def __init__(self, series: _Optional[_Iterable[_Union[_work_pb2.MetricSeries, _Mapping]]] = ...) -> None: ...
