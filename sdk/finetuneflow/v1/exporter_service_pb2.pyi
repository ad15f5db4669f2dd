from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import work_pb2 as _work_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetExporterRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetExporterResponse(_message.Message):
    __slots__ = ("node", "formats")
    NODE_FIELD_NUMBER: _ClassVar[int]
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    node: _work_pb2.Node
    formats: _containers.RepeatedScalarFieldContainer[_fine_tuning_job_spec_pb2.ExportFormat]
    def __init__(self, node: _Optional[_Union[_work_pb2.Node, _Mapping]] = ..., formats: _Optional[_Iterable[_Union[_fine_tuning_job_spec_pb2.ExportFormat, str]]] = ...) -> None: ...
