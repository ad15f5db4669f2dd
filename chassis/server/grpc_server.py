"""The gRPC server of a process: error mapping, health, reflection, limits."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.rpc import status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio  # type: ignore[attr-defined]
from grpc_reflection.v1alpha import reflection

from chassis.error_protocols import SystemFault
from chassis.errors import (
    DETAILS_KEY,
    CallerFault,
    Internal,
    ServiceError,
    Unimplemented,
    from_caller_fault,
    from_system_fault,
    unreadable_request,
)
from chassis.server.access_policy import policies
from chassis.server.handler_wrapping import Context, Streaming, Unary, Unreadable, answer_of, wrapped

_log = logging.getLogger(__name__)

MAX_RECEIVE_BYTES = 4 * 1024 * 1024
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
    # Otherwise a second process on the same port would start without an error and take every other connection.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Clients ping idle watches; a stricter server answers them with GOAWAY too_many_pings.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
]


@dataclass(frozen=True)
class Mount:
    """One service of a server."""

    descriptor: ServiceDescriptor
    """`trainer_service_pb2.DESCRIPTOR.services_by_name["TrainerService"]`: names it to health and reflection."""
    add: Callable[[Any, Any], None]
    """The generated `add_…Servicer_to_server`."""
    servicer: object


class Server:
    """A running server. `port` is the bound port, `address` is host:port."""

    def __init__(self, server: grpc.aio.Server, host: str, port: int, health: Any, names: Sequence[str]) -> None:
        self._server = server
        self._health = health
        self._names = names
        self.port = port
        self.address = f"{host}:{port}"

    async def set_serving(self, serving: bool) -> None:
        """Sets the health of every service. A draining process reports NOT_SERVING and still answers calls."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace_seconds: float = 5.0) -> None:
        """Refuses new calls, and cancels running ones after the grace period."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_seconds)

    async def wait(self) -> None:
        await self._server.wait_for_termination()


async def serve(
    *mounts: Mount,
    listen: str,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),  # type: ignore[type-arg] # generic in the stubs only
    credentials: grpc.ServerCredentials | None = None,
    options: Sequence[tuple[str, int]] = (),
    serving: bool = True,
) -> Server:
    """Starts a server on `listen` (host:port; port 0 selects a free port). Raises OSError if the port is taken, and
    ValueError if a method has no access policy.

    `interceptors` decide who may call; what they raise becomes a status. Without `credentials` nothing is encrypted.
    `options` are gRPC's; they take precedence over those of every process. `serving` is what the health check answers
    until `Server.set_serving` is called.
    """
    policies(mount.descriptor for mount in mounts)
    server = grpc.aio.server(
        interceptors=[ErrorInterceptor(), *interceptors], options=list({**dict(_OPTIONS), **dict(options)}.items())
    )
    for mount in mounts:
        mount.add(mount.servicer, server)
    names = [mount.descriptor.full_name for mount in mounts]
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
    reflection.enable_server_reflection((*names, health_name, reflection.SERVICE_NAME), server)
    try:
        port = server.add_secure_port(listen, credentials) if credentials else server.add_insecure_port(listen)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {listen}: {error}") from error
    if port == 0:
        raise OSError(f"cannot listen on {listen}")
    await server.start()
    running = Server(server, listen.rpartition(":")[0], port, health, names)
    await running.set_serving(serving)
    return running


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg] # generic in the stubs only
    """Turns exceptions into statuses, in unary handlers and while a streaming handler is iterated.

    The abort happens outside the `except`, and CancelledError is no Exception: a handler that swallows it leaks.
    """

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: Any) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        return wrapped(handler, partial(_map_errors, method=method), partial(_map_stream_errors, method=method))


def _map_errors(behaviour: Callable[..., Any], *, method: str) -> Unary:
    async def call(request: Any, context: Context) -> Any:
        try:
            _check_readable(request)
            return await answer_of(behaviour, request, context)
        except Exception as error:  # noqa: BLE001 - the one place where every error becomes a status
            failure = error
        return await _abort(context, failure, method)

    return call


def _map_stream_errors(behaviour: Callable[..., Any], *, method: str) -> Streaming:
    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            _check_readable(request)
            answers = behaviour(request, context)
            if hasattr(answers, "__aiter__"):
                # Closed at once: resources of a cancelled stream must not wait for the garbage collector.
                async with contextlib.aclosing(answers):
                    async for answer in answers:
                        yield answer
            else:
                await answers
            return
        except Exception as error:  # noqa: BLE001 - as above
            failure = error
        await _abort(context, failure, method)

    return call


def _check_readable(request: object) -> None:
    if isinstance(request, Unreadable):
        raise unreadable_request()


async def _abort(context: Context, failure: Exception, method: str) -> None:
    if isinstance(failure, grpc.aio.AbortError):
        raise failure
    if isinstance(failure, grpc.aio.AioRpcError) and failure.code() is not grpc.StatusCode.UNKNOWN:
        # A forwarded call: pass on the status of the server that answered, with its details.
        received: Any = failure.trailing_metadata() or ()
        trailing = [(key, value) for key, value in received if key == DETAILS_KEY]
        await context.abort(failure.code(), failure.details() or "", tuple(trailing))
    status = to_service_error(failure, context, method).status()
    await context.abort(_grpc_code(status), status.message, ((DETAILS_KEY, status.SerializeToString()),))


def to_service_error(failure: Exception, context: Context, method: str) -> ServiceError:
    """Maps an exception to the error that the caller gets; the only place that does."""
    if isinstance(failure, ServiceError):
        return failure
    if isinstance(failure, NotImplementedError) and context.code() is grpc.StatusCode.UNIMPLEMENTED:
        # The generated base class raises it for a method that the servicer does not define.
        return Unimplemented("METHOD_NOT_IMPLEMENTED", f"{method} is not served yet.", metadata={"method": method})
    if isinstance(failure, CallerFault):
        return from_caller_fault(failure)
    if isinstance(failure, SystemFault):
        return from_system_fault(failure)
    incident = secrets.token_hex(6)
    _log.error("unexpected error in %s, incident %s", method, incident, exc_info=failure)
    return Internal(
        "INTERNAL",
        f"Internal error of the server; see its log for incident {incident}.",
        metadata={"incident": incident},
    )


def _grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    return next(code for code in grpc.StatusCode if code.value[0] == status.code)
