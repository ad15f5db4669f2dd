from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_READER: _ClassVar[Role]
    ROLE_MEMBER: _ClassVar[Role]
    ROLE_OPERATOR: _ClassVar[Role]

class Scope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCOPE_UNSPECIFIED: _ClassVar[Scope]
    SCOPE_TENANT: _ClassVar[Scope]
    SCOPE_SYSTEM: _ClassVar[Scope]
    SCOPE_SERVICE: _ClassVar[Scope]
ROLE_UNSPECIFIED: Role
ROLE_READER: Role
ROLE_MEMBER: Role
ROLE_OPERATOR: Role
SCOPE_UNSPECIFIED: Scope
SCOPE_TENANT: Scope
SCOPE_SYSTEM: Scope
SCOPE_SERVICE: Scope
ACCESS_FIELD_NUMBER: _ClassVar[int]
access: _descriptor.FieldDescriptor

class Access(_message.Message):
    __slots__ = ("role", "scope", "resource")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_FIELD_NUMBER: _ClassVar[int]
    role: Role
    scope: Scope
    resource: str
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., scope: _Optional[_Union[Scope, str]] = ..., resource: _Optional[str] = ...) -> None: ...
