"""Lets only the gateway call the methods of a service. Who calls is read from the client's certificate."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2

from chassis.errors import PermissionDenied
from chassis.server.handler_wrapping import Context, Streaming, Unary, answer_of, wrapped

GATEWAY: Final = "gateway"
_HEALTH: Final = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"


class PeerInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Refuses calls of peers whose certificate does not have the name `gateway`.

    The same authority signs the certificates of all processes: without this, a stolen trainer's certificate would open
    every service. Health is open to each of them.
    """

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.startswith(_HEALTH):
            return handler
        return wrapped(handler, _guard, _guard_stream)


def _guard(behaviour: Callable[..., Any]) -> Unary:
    async def call(request: Any, context: Context) -> Any:
        _check(context)
        return await answer_of(behaviour, request, context)

    return call


def _guard_stream(behaviour: Callable[..., Any]) -> Streaming:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        _check(context)
        async with contextlib.aclosing(behaviour(request, context)) as answers:
            async for answer in answers:
                yield answer

    return call


def _check(context: Context) -> None:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    if GATEWAY.encode() not in names:
        raise PermissionDenied("SERVICES_ONLY", "Only a gateway, by its certificate, calls this service.")
