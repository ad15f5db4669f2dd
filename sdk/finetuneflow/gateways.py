"""Channels to several gateways that behave like one: after a failure, the next call goes to the next gateway.

There is one channel per address, because gRPC's own failover accepts IP addresses only and checks a single name in TLS.
Generated stubs accept both classes as a channel.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self

import grpc
import grpc.aio

from finetuneflow.connection import Connection
from finetuneflow.errors import FineTuneFlowError, ServerUnreachable, from_rpc_error


class _Choice:
    """The index of the gateway in use: the one after the last that failed."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._lock = threading.Lock()
        self.index = 0

    def failed(self, index: int, error: grpc.RpcError) -> None:
        """Records that a call to gateway `index` ended with `error`. If many calls lose the same gateway, only the
        first one moves to the next."""
        if isinstance(from_rpc_error(error, ""), ServerUnreachable):
            with self._lock:
                if self.index == index:
                    self.index = (index + 1) % self._count


class FailoverChannel:
    """The channel of synchronous stubs. Nothing is sent before the first call. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        credentials = connection.credentials
        self._choice = _Choice(len(connection.addresses))
        self._channels = [
            grpc.insecure_channel(address, options=connection.options(address))
            if credentials is None
            else grpc.secure_channel(address, credentials, options=connection.options(address))
            for address in connection.addresses
        ]

    def unary_unary(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._answered_once([channel.unary_unary(path, **how) for channel in self._channels])

    def stream_unary(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._answered_once([channel.stream_unary(path, **how) for channel in self._channels])

    def unary_stream(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._streaming([channel.unary_stream(path, **how) for channel in self._channels])

    def stream_stream(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._streaming([channel.stream_stream(path, **how) for channel in self._channels])

    def close(self) -> None:
        for channel in self._channels:
            channel.close()

    def _answered_once(self, methods: list[Any]) -> Callable[..., Any]:
        def call(request: Any, **options: Any) -> Any:
            index = self._choice.index
            try:
                return methods[index](request, **options)
            except grpc.RpcError as error:
                self._choice.failed(index, error)
                raise

        return call

    def _streaming(self, methods: list[Any]) -> Callable[..., Any]:
        def call(request: Any, **options: Any) -> _Responses:
            index = self._choice.index
            return _Responses(methods[index](request, **options), lambda error: self._choice.failed(index, error))

        return call


class _Responses:
    """A stream of responses that reports the error that ends it."""

    def __init__(self, call: Any, failed: Callable[[grpc.RpcError], None]) -> None:
        self._call = call
        self._failed = failed

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._call)
        except grpc.RpcError as error:
            self._failed(error)
            raise

    def cancel(self) -> None:
        self._call.cancel()


class AioFailoverChannel:
    """The channel of asynchronous stubs. Use it on one event loop only: that of the first call."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._credentials = connection.credentials
        self._choice = _Choice(len(connection.addresses))
        self._channels: list[grpc.aio.Channel] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    def unary_unary(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._answered_once(self._methods("unary_unary", path, how))

    def stream_unary(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._answered_once(self._methods("stream_unary", path, how))

    def unary_stream(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._streaming(self._methods("unary_stream", path, how))

    def stream_stream(self, path: str, **how: Any) -> Callable[..., Any]:
        return self._streaming(self._methods("stream_stream", path, how))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    def _answered_once(self, method: Callable[[int], Any]) -> Callable[..., Any]:
        async def call(request: Any, **options: Any) -> Any:
            index = self._choice.index
            try:
                return await method(index)(request, **options)
            except grpc.RpcError as error:
                self._choice.failed(index, error)
                raise

        return call

    def _streaming(self, method: Callable[[int], Any]) -> Callable[..., Any]:
        def call(request: Any, **options: Any) -> _AioResponses:
            index = self._choice.index
            return _AioResponses(method(index)(request, **options), lambda error: self._choice.failed(index, error))

        return call

    def _methods(self, kind: str, path: str, how: dict[str, Any]) -> Callable[[int], Any]:
        made: list[Any] = []

        def method(index: int) -> Any:
            if self._loop not in (None, asyncio.get_running_loop()):
                raise FineTuneFlowError(
                    "This AsyncClient belongs to another event loop, in which its first call was made.",
                    advice="Make one client in each event loop, inside the coroutine that asyncio.run runs, or use "
                    "Client.",
                )
            if not made:
                made.extend(getattr(channel, kind)(path, **how) for channel in self._opened())
            return made[index]

        return method

    def _opened(self) -> list[grpc.aio.Channel]:
        # A channel of grpc.aio belongs to the event loop it is created on, and a client may be created before the loop.
        if not self._channels:
            self._loop = asyncio.get_running_loop()
            for address in self._connection.addresses:
                options = self._connection.options(address)
                self._channels.append(
                    grpc.aio.insecure_channel(address, options=options)
                    if self._credentials is None
                    else grpc.aio.secure_channel(address, self._credentials, options=options)
                )
        return self._channels


class _AioResponses:
    """The asynchronous form of _Responses."""

    def __init__(self, call: Any, failed: Callable[[grpc.RpcError], None]) -> None:
        self._call = call
        self._responses: AsyncIterator[Any] = call.__aiter__()
        self._failed = failed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._responses)
        except grpc.RpcError as error:
            self._failed(error)
            raise

    def cancel(self) -> None:
        self._call.cancel()
