"""Calls to the gateways: a deadline, retries where repeating is safe, typed errors.

CallPolicy makes these decisions once. Two transports carry them out: AioTransport on an event loop, BlockingTransport
in the calling thread. The client is written once, with `await`, over a CallPolicy; BlockingTransport never suspends, so
`finetuneflow.blocking` runs the same code without an event loop.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

import grpc
from google.protobuf.message import Message

from finetuneflow.blocking import run
from finetuneflow.connection import Connection
from finetuneflow.errors import ApiError, FineTuneFlowError, ServerUnreachable, Unavailable, from_rpc_error
from finetuneflow.gateways import AioFailoverChannel, FailoverChannel
from finetuneflow.patience import Patience

# A server that answered before is restarting; one that never answered does not exist.
_SECONDS_FOR_A_RESTART = 30.0
_SECONDS_FOR_A_START = 1.5
# The gateway answers, but a part that it needs (the broker, a node) doesn't: it may just be starting.
_SECONDS_FOR_A_PART = 3.0
_TRY_SECONDS = 30.0

R = TypeVar("R")


class Stream(Protocol):
    """The responses of a call. Iterating raises grpc.RpcError, which CallPolicy.error translates."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def cancel(self) -> None: ...


class CallPolicy(ABC):
    """Deadline, retries and error translation of every call; a subclass is the transport that carries it.

    `connection` holds the addresses and credentials of one system, `closed` is True once the client was closed.
    """

    channel: Any
    """The channel for generated stubs."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed = False
        self._answered = False

    @abstractmethod
    def stream(self, method: Any, request: Message, *, timeout: float | None = None) -> Stream:
        """Starts a call with a stream of responses. `timeout` is the deadline of the whole stream in seconds."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Waits without making a call."""

    @abstractmethod
    async def transfer(self, work: Callable[[PlainCalls], R]) -> R:
        """Runs `work`, which moves a file and therefore reads, writes and hashes in blocking calls."""

    @abstractmethod
    async def _once(self, method: Any, request: Message, seconds: float) -> Any:
        """Makes one attempt at a unary call."""

    def patience(self, seconds: float | None = None) -> Patience:
        """Returns the back-off for consecutive attempts during `seconds`; by default 30 s if the server has answered
        before, otherwise 1.5 s. The other gateways are tried before the first wait."""
        if seconds is None:
            seconds = _SECONDS_FOR_A_RESTART if self._answered else _SECONDS_FOR_A_START
        return Patience(seconds, at_once=len(self.connection.addresses) - 1)

    async def call(self, method: Any, request: Message, *, try_seconds: float = _TRY_SECONDS) -> Any:
        """Makes a unary call and repeats it while it is UNAVAILABLE; every call made through here is idempotent.
        Any other error is final: credentials, rights and limits do not change from one attempt to the next.

        `try_seconds` is the deadline of each attempt. Raises ApiError.
        """
        gone, partly = self.patience(), self.patience(_SECONDS_FOR_A_PART)
        while True:
            try:
                response = await self._once(method, request, try_seconds)
            except grpc.RpcError as rpc_error:
                error = self.error(rpc_error)
                patience = gone if isinstance(error, ServerUnreachable) else partly
                delay = patience.next_delay() if isinstance(error, Unavailable) else None
                if delay is None:
                    raise error from rpc_error
                await self.sleep(delay)
            else:
                self._answered = True
                return response

    async def call_once(self, method: Any, request: Message) -> Any:
        """Makes a unary call that is not idempotent, and never repeats it. Raises ApiError."""
        try:
            response = await self._once(method, request, _TRY_SECONDS)
        except grpc.RpcError as rpc_error:
            raise self.error(rpc_error) from rpc_error
        self._answered = True
        return response

    def error(self, rpc_error: grpc.RpcError) -> ApiError:
        """Translates an error of grpc into an ApiError. Raises FineTuneFlowError if this client was closed."""
        if self.closed:
            raise FineTuneFlowError("This client was closed.") from rpc_error
        error = from_rpc_error(rpc_error, self.connection.address)
        if not isinstance(error, ServerUnreachable):
            self._answered = True
        return error

    def _options(self, timeout: float | None) -> dict[str, Any]:
        if self.closed:
            raise FineTuneFlowError("This client was closed.")
        return {"timeout": timeout, "metadata": self.connection.metadata}


class AioTransport(CallPolicy):
    """Suspends on an event loop. Used on one event loop only."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.channel = AioFailoverChannel(connection)

    def stream(self, method: Any, request: Message, *, timeout: float | None = None) -> Stream:
        stream: Stream = method(request, **self._options(timeout))
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def transfer(self, work: Callable[[PlainCalls], R]) -> R:
        calls = PlainCalls(BlockingTransport(self.connection))
        moving = asyncio.ensure_future(asyncio.to_thread(work, calls))
        try:
            return await asyncio.shield(moving)
        except asyncio.CancelledError:
            # Ends the thread's calls, and with them the thread; until then it may still write to the caller's file.
            calls.close()
            await asyncio.wait([moving])
            if not moving.cancelled():
                moving.exception()
            raise
        finally:
            calls.close()

    async def close(self) -> None:
        self.closed = True
        await self.channel.close()

    async def _once(self, method: Any, request: Message, seconds: float) -> Any:
        return await method(request, **self._options(seconds))


class BlockingTransport(CallPolicy):
    """Blocks the calling thread instead of suspending. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.channel = FailoverChannel(connection)

    def stream(self, method: Any, request: Message, *, timeout: float | None = None) -> Stream:
        return _Inline(method(request, **self._options(timeout)))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop

    async def transfer(self, work: Callable[[PlainCalls], R]) -> R:
        return work(PlainCalls(self))

    def close(self) -> None:
        self.closed = True
        self.channel.close()

    async def _once(self, method: Any, request: Message, seconds: float) -> Any:
        return method(request, **self._options(seconds))


class _Inline:
    """A synchronous stream, for `async for` without an event loop."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        for response in self._stream:
            return response
        raise StopAsyncIteration

    def cancel(self) -> None:
        self._stream.cancel()


class PlainCalls:
    """Calls in plain functions, for the code that moves files. Opened at the first call; thread-safe."""

    def __init__(self, transport: BlockingTransport) -> None:
        self._transport = transport

    @property
    def channel(self) -> Any:
        """The channel for generated stubs."""
        return self._transport.channel

    def patience(self) -> Patience:
        """Returns CallPolicy.patience with its default duration."""
        return self._transport.patience()

    def call(self, method: Any, request: Message, *, timeout: float = 30.0) -> Any:
        """Blocking form of CallPolicy.call; `timeout` is the deadline of each attempt in seconds."""
        return run(self._transport.call(method, request, try_seconds=timeout))

    def stream(self, method: Any, request: Message | Iterator[Message], *, timeout: float | None = None) -> Any:
        """Starts a streaming call. Iterating over the result raises grpc.RpcError, which `error` translates."""
        return method(request, **self._transport._options(timeout))

    def error(self, rpc_error: grpc.RpcError) -> ApiError:
        """Returns the exception of CallPolicy.error."""
        return self._transport.error(rpc_error)

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()
