from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import event_pb2 as _event_pb2
from finetuneflow.v1 import export_pb2 as _export_pb2
from finetuneflow.v1 import fine_tuning_job_pb2 as _fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateExportRequest(_message.Message):
    __slots__ = ("model", "spec", "request_id", "secrets")
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    model: str
    spec: _fine_tuning_job_spec_pb2.ExportSpec
    request_id: str
    secrets: _containers.ScalarMap[str, str]
    def __init__(self, model: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.ExportSpec, _Mapping]] = ..., request_id: _Optional[str] = ..., secrets: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CreateExportResponse(_message.Message):
    __slots__ = ("export",)
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    export: _export_pb2.Export
    def __init__(self, export: _Optional[_Union[_export_pb2.Export, _Mapping]] = ...) -> None: ...

class GetExportRequest(_message.Message):
    __slots__ = ("export_id",)
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    export_id: str
    def __init__(self, export_id: _Optional[str] = ...) -> None: ...

class GetExportResponse(_message.Message):
    __slots__ = ("export",)
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    export: _export_pb2.Export
    def __init__(self, export: _Optional[_Union[_export_pb2.Export, _Mapping]] = ...) -> None: ...

class ListExportsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "job_id", "states")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    job_id: str
    states: _containers.RepeatedScalarFieldContainer[_fine_tuning_job_pb2.JobState]
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., job_id: _Optional[str] = ..., states: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.JobState, str]]] = ...) -> None: ...

class ListExportsResponse(_message.Message):
    __slots__ = ("exports", "next_page_token")
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    exports: _containers.RepeatedCompositeFieldContainer[_export_pb2.Export]
    next_page_token: str
    def __init__(self, exports: _Optional[_Iterable[_Union[_export_pb2.Export, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CancelExportRequest(_message.Message):
    __slots__ = ("export_id",)
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    export_id: str
    def __init__(self, export_id: _Optional[str] = ...) -> None: ...

class CancelExportResponse(_message.Message):
    __slots__ = ("export",)
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    export: _export_pb2.Export
    def __init__(self, export: _Optional[_Union[_export_pb2.Export, _Mapping]] = ...) -> None: ...

class DeleteExportRequest(_message.Message):
    __slots__ = ("export_id",)
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    export_id: str
    def __init__(self, export_id: _Optional[str] = ...) -> None: ...

class DeleteExportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchExportRequest(_message.Message):
    __slots__ = ("export_id", "after_sequence", "kinds", "min_severity")
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    MIN_SEVERITY_FIELD_NUMBER: _ClassVar[int]
    export_id: str
    after_sequence: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    min_severity: _event_pb2.Severity
    def __init__(self, export_id: _Optional[str] = ..., after_sequence: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ..., min_severity: _Optional[_Union[_event_pb2.Severity, str]] = ...) -> None: ...

class WatchExportResponse(_message.Message):
    __slots__ = ("events", "through_sequence")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    through_sequence: int
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ..., through_sequence: _Optional[int] = ...) -> None: ...

class ListExportEventsRequest(_message.Message):
    __slots__ = ("export_id", "after_sequence", "page_size", "kinds")
    EXPORT_ID_FIELD_NUMBER: _ClassVar[int]
    AFTER_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    export_id: str
    after_sequence: int
    page_size: int
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, export_id: _Optional[str] = ..., after_sequence: _Optional[int] = ..., page_size: _Optional[int] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class ListExportEventsResponse(_message.Message):
    __slots__ = ("events", "through_sequence")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    THROUGH_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_event_pb2.Event]
    through_sequence: int
    def __init__(self, events: _Optional[_Iterable[_Union[_event_pb2.Event, _Mapping]]] = ..., through_sequence: _Optional[int] = ...) -> None: ...
