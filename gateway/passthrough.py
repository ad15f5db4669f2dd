"""Calls that another process answers: the gateway dials the addresses that nodes publish and forwards the call.

A status with details is the node's own answer and reaches the caller unchanged; one without comes from the channel to a
node that could not be reached, and the next node is tried. A channel lives as long as its call: these calls are rare,
and nodes come and go.
"""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from chassis.bus.event_bus import Bus, BusUnavailable
from chassis.errors import DETAILS_KEY, Unavailable
from chassis.security.identity import Identity
from finetuneflow.v1.work_pb2 import Node

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Method = Callable[[grpc.aio.Channel], Callable[..., Any]]
"""Returns the method of a stub on a channel."""

_NO_NODE = {"probe": "NO_PROBE", "evaluator": "NO_EVALUATOR"}
"""The reason that no node of a service could be reached."""
_CHANNEL_OPTIONS: list[tuple[str, int | str]] = [
    # A machine that lost power closes no connection; without pings a forwarded call would wait for ever.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]


class Passthrough:
    """Forwards calls to live nodes."""

    def __init__(self, bus: Bus, identity: Identity | None = None) -> None:
        """Without an identity the connections are not encrypted."""
        self._bus = bus
        self._identity = identity

    async def nodes(self) -> list[Node]:
        """Returns all live nodes, sorted by id. Raises Unavailable while the broker is unavailable."""
        try:
            nodes = await self._bus.nodes()
        except BusUnavailable as error:
            raise Unavailable("NO_BROKER", "The message broker is unavailable; try again.") from error
        return sorted(nodes, key=lambda node: node.id)

    async def unary(self, service: str, method: Method, request: object, context: Context, node_id: str = "") -> Any:
        """Returns the answer of the first node of `service` that can be reached; `node_id` is tried first."""
        for address in await self._addresses(service, node_id):
            async with self._channel(service, address) as channel:
                try:
                    return await method(channel)(request, timeout=_remaining(context))
                except grpc.aio.AioRpcError as error:
                    if not _unreachable(error):
                        raise
                    _log_unreachable(service, address, error)
        raise _no_node_error(service)

    async def stream(
        self, service: str, method: Method, request: object, context: Context, warm_model: str = ""
    ) -> AsyncIterator[Any]:
        """Yields the answers of the first node of `service` that can be reached; those that hold `warm_model` in memory
        are tried first.

        After the first answer no other node is tried: it would start from the beginning.
        """
        for address in await self._addresses(service, warm_model=warm_model):
            async with self._channel(service, address) as channel:
                answered = False
                try:
                    async for response in method(channel)(request, timeout=_remaining(context)):
                        answered = True
                        yield response
                    return
                except grpc.aio.AioRpcError as error:
                    if not _unreachable(error):
                        raise
                    _log_unreachable(service, address, error)
                    if answered:
                        message = f"The connection to the {service} was lost during its answer; try again."
                        raise Unavailable("NODE_LOST", message) from error
        raise _no_node_error(service)

    def _channel(self, service: str, address: str) -> grpc.aio.Channel:
        if self._identity is None:
            return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        # A node says itself where it is; its certificate says what it is.
        options = [*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", service)]
        return grpc.aio.secure_channel(address, self._identity.channel_credentials(), options=options)

    async def _addresses(self, service: str, preferred: str = "", warm_model: str = "") -> list[str]:
        nodes = [node for node in await self.nodes() if node.service == service and node.address]
        nodes.sort(key=lambda node: (node.id != preferred, node.draining, warm_model not in node.warm_models))
        return [node.address for node in nodes]


def _remaining(context: Context) -> float | None:
    """Seconds until the caller's deadline; None without one."""
    return context.time_remaining()


def _unreachable(error: grpc.aio.AioRpcError) -> bool:
    # CANCELLED is what a node that stops says of calls it has begun; a caller that leaves raises CancelledError here.
    if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return False
    # The stubs say a sequence of objects; it is a sequence of pairs.
    trailing: Any = error.trailing_metadata() or ()
    return all(key != DETAILS_KEY for key, _ in trailing)


def _log_unreachable(service: str, address: str, error: grpc.aio.AioRpcError) -> None:
    # The caller only hears that no node answers; a certificate that is wrong or has ended is seen here alone.
    _log.warning("the %s at %s cannot be reached: %s", service, address, error.details())


def _no_node_error(service: str) -> Unavailable:
    message = f"No {service} is reachable. Ask the operator to start one, then try again."
    return Unavailable(_NO_NODE[service], message, metadata={"service": service})
