from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import work_pb2 as _work_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetTrainerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetTrainerResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: _work_pb2.Node
    def __init__(self, node: _Optional[_Union[_work_pb2.Node, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs",)
    RUNS_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[_work_pb2.Run]
    def __init__(self, runs: _Optional[_Iterable[_Union[_work_pb2.Run, _Mapping]]] = ...) -> None: ...

class DrainTrainerRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainTrainerResponse(_message.Message):
    __slots__ = ("node",)
    NODE_FIELD_NUMBER: _ClassVar[int]
    node: _work_pb2.Node
    def __init__(self, node: _Optional[_Union[_work_pb2.Node, _Mapping]] = ...) -> None: ...
