"""Registers servicers some of whose methods take or return bytes, so that bulk data is not parsed or serialised."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass


def add_with(
    special: Mapping[str, Any], service: str, add: Callable[[Any, Any], None], servicer: object, server: Any
) -> None:
    """Calls the generated `add`, with `special` handlers for some methods. `service` is its full name."""
    captured = _Captured()
    add(servicer, captured)
    handlers = {**captured.handlers, **special}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


def add_with_byte_stream(
    service: ServiceDescriptor, method: str, add: Callable[[Any, Any], None], servicer: object, server: Any
) -> None:
    """Calls the generated `add`; `method` yields serialised responses."""
    handler = grpc.unary_stream_rpc_method_handler(
        getattr(servicer, method),
        request_deserializer=GetMessageClass(service.methods_by_name[method].input_type).FromString,
        response_serializer=None,
    )
    add_with({method: handler}, service.full_name, add, servicer, server)


class _Captured:
    """Stands in for a server while the generated function registers its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers again, in a form that can't be changed."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers = handlers
