"""Wraps the behaviour of a gRPC handler without changing its shape, for interceptors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

Context = grpc.aio.ServicerContext[Any, Any]
Unary = Callable[[Any, Context], Awaitable[Any]]
Streaming = Callable[[Any, Context], AsyncIterator[Any]]

_SHAPES: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def wrapped(
    handler: Any, unary: Callable[[Callable[..., Any]], Unary], streaming: Callable[[Callable[..., Any]], Streaming]
) -> Any:
    """Returns a handler whose behaviour is `unary(behaviour)`, or `streaming(behaviour)` if its responses are a
    stream."""
    attribute, build = _SHAPES[handler.request_streaming, handler.response_streaming]
    wrap: Callable[[Callable[..., Any]], Callable[..., Any]] = streaming if handler.response_streaming else unary
    return build(
        wrap(getattr(handler, attribute)),
        request_deserializer=reads_anything(handler.request_deserializer),
        response_serializer=handler.response_serializer,
    )


class Unreadable:
    """Stands in for a request whose bytes are not the method's message."""


def reads_anything(deserialize: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """Returns a deserializer that gives Unreadable where `deserialize` raises: there grpc answers INTERNAL and logs a
    traceback, for each request of a scanner."""
    if deserialize is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Unreadable()

    return read


async def answer_of(behaviour: Callable[..., Any], request: Any, context: Context) -> Any:
    """Returns the answer of a unary behaviour, which may be a plain function."""
    answer = behaviour(request, context)
    return await answer if hasattr(answer, "__await__") else answer
