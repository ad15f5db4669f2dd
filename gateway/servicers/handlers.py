"""Servicers whose bulk methods take or give bytes that nobody has to parse or serialise."""

from collections.abc import Callable, Mapping
from typing import Any

import grpc


def add_with(
    special: Mapping[str, Any], service: str, add: Callable[[Any, Any], None], servicer: object, server: Any
) -> None:
    """As the generated `add`, with other handlers for some methods. `service` is its full name."""
    captured = _Captured()
    add(servicer, captured)
    handlers = {**captured.handlers, **special}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


class _Captured:
    """Stands in for a server while the generated function registers its handlers."""

    def __init__(self) -> None:
        self.handlers: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """The same handlers again, in a form that can't be changed."""

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        self.handlers = handlers
