from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import dataset_pb2 as _dataset_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import validation_pb2 as _validation_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class UploadDatasetRequest(_message.Message):
    __slots__ = ("header", "chunk", "sha256")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    header: UploadDatasetHeader
    chunk: bytes
    sha256: str
    def __init__(self, header: _Optional[_Union[UploadDatasetHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ..., sha256: _Optional[str] = ...) -> None: ...

class UploadDatasetHeader(_message.Message):
    __slots__ = ("filename", "display_name", "size_bytes", "sha256", "request_id", "offset", "sha256_follows")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SHA256_FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    filename: str
    display_name: str
    size_bytes: int
    sha256: str
    request_id: str
    offset: int
    sha256_follows: bool
    def __init__(self, filename: _Optional[str] = ..., display_name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., request_id: _Optional[str] = ..., offset: _Optional[int] = ..., sha256_follows: bool = ...) -> None: ...

class UploadDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: _dataset_pb2.Dataset
    def __init__(self, dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ...) -> None: ...

class GetUploadRequest(_message.Message):
    __slots__ = ("request_id", "sha256")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sha256: str
    def __init__(self, request_id: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class GetUploadResponse(_message.Message):
    __slots__ = ("received_bytes", "dataset")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    dataset: _dataset_pb2.Dataset
    def __init__(self, received_bytes: _Optional[int] = ..., dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class GetDatasetResponse(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: _dataset_pb2.Dataset
    def __init__(self, dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[_dataset_pb2.Dataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[_dataset_pb2.Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteDatasetRequest(_message.Message):
    __slots__ = ("dataset_id",)
    DATASET_ID_FIELD_NUMBER: _ClassVar[int]
    dataset_id: str
    def __init__(self, dataset_id: _Optional[str] = ...) -> None: ...

class DeleteDatasetResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ValidateDatasetRequest(_message.Message):
    __slots__ = ("source", "base_model", "max_length", "chat_template", "system_prompt", "dataset", "tenant", "truncation")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    source: _fine_tuning_job_spec_pb2.DataSource
    base_model: str
    max_length: int
    chat_template: str
    system_prompt: str
    dataset: _dataset_pb2.Dataset
    tenant: str
    truncation: _fine_tuning_job_spec_pb2.Truncation
    def __init__(self, source: _Optional[_Union[_fine_tuning_job_spec_pb2.DataSource, _Mapping]] = ..., base_model: _Optional[str] = ..., max_length: _Optional[int] = ..., chat_template: _Optional[str] = ..., system_prompt: _Optional[str] = ..., dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ..., tenant: _Optional[str] = ..., truncation: _Optional[_Union[_fine_tuning_job_spec_pb2.Truncation, str]] = ...) -> None: ...

class ValidateDatasetResponse(_message.Message):
    __slots__ = ("report",)
    REPORT_FIELD_NUMBER: _ClassVar[int]
    report: _validation_pb2.ValidationReport
    def __init__(self, report: _Optional[_Union[_validation_pb2.ValidationReport, _Mapping]] = ...) -> None: ...

class PreviewDatasetRequest(_message.Message):
    __slots__ = ("source", "base_model", "first_row", "num_rows", "max_length", "chat_template", "system_prompt", "dataset", "tenant", "truncation")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROW_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    source: _fine_tuning_job_spec_pb2.DataSource
    base_model: str
    first_row: int
    num_rows: int
    max_length: int
    chat_template: str
    system_prompt: str
    dataset: _dataset_pb2.Dataset
    tenant: str
    truncation: _fine_tuning_job_spec_pb2.Truncation
    def __init__(self, source: _Optional[_Union[_fine_tuning_job_spec_pb2.DataSource, _Mapping]] = ..., base_model: _Optional[str] = ..., first_row: _Optional[int] = ..., num_rows: _Optional[int] = ..., max_length: _Optional[int] = ..., chat_template: _Optional[str] = ..., system_prompt: _Optional[str] = ..., dataset: _Optional[_Union[_dataset_pb2.Dataset, _Mapping]] = ..., tenant: _Optional[str] = ..., truncation: _Optional[_Union[_fine_tuning_job_spec_pb2.Truncation, str]] = ...) -> None: ...

class PreviewDatasetResponse(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[RowPreview]
    def __init__(self, rows: _Optional[_Iterable[_Union[RowPreview, _Mapping]]] = ...) -> None: ...

class RowPreview(_message.Message):
    __slots__ = ("row", "text", "tokens", "input_ids", "labels", "truncated", "trained_spans", "problem", "dropped")
    ROW_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    INPUT_IDS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    TRAINED_SPANS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    row: int
    text: str
    tokens: _containers.RepeatedScalarFieldContainer[str]
    input_ids: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.RepeatedScalarFieldContainer[int]
    truncated: bool
    trained_spans: _containers.RepeatedCompositeFieldContainer[TokenSpan]
    problem: _validation_pb2.RowProblem
    dropped: bool
    def __init__(self, row: _Optional[int] = ..., text: _Optional[str] = ..., tokens: _Optional[_Iterable[str]] = ..., input_ids: _Optional[_Iterable[int]] = ..., labels: _Optional[_Iterable[int]] = ..., truncated: bool = ..., trained_spans: _Optional[_Iterable[_Union[TokenSpan, _Mapping]]] = ..., problem: _Optional[_Union[_validation_pb2.RowProblem, _Mapping]] = ..., dropped: bool = ...) -> None: ...

class TokenSpan(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...
