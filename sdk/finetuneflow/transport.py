"""Calls to the gateways: a deadline, retries where repeating is safe, typed errors.

What the client does is written once, with `await`, over an AsyncTransport. BlockingTransport never suspends, so
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

# A server that answered before is restarting; one that never did isn't there.
_SECONDS_FOR_A_RESTART = 30.0
_SECONDS_FOR_A_START = 1.5
# The gateway answers, but what it needs (the broker, a node) doesn't: it may just be starting.
_SECONDS_FOR_A_PART = 3.0

R = TypeVar("R")


class Stream(Protocol):
    """Responses of a call; iterating raises grpc.RpcError, which the transport's `error` translates."""

    def __aiter__(self) -> AsyncIterator[Any]: ...

    def cancel(self) -> None: ...


class AsyncTransport(ABC):
    """Calls to one system. `channel` is for stubs."""

    channel: Any

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closed = False
        self._answered = False

    @abstractmethod
    def stream(self, method: Any, request: Message, *, timeout: float | None = None) -> Stream:
        """Starts a call with a stream of responses. `timeout` is in seconds, for the whole of it."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def transfer(self, work: Callable[[Transport], R]) -> R:
        """Runs what moves a file: it reads, writes and hashes in blocking calls."""

    @abstractmethod
    async def _once(self, method: Any, request: Message, seconds: float) -> Any: ...

    def patience(self, seconds: float | None = None) -> Patience:
        """For tries in a row, `seconds` long. The other gateways are tried before there is anything to wait for."""
        if seconds is None:
            seconds = _SECONDS_FOR_A_RESTART if self._answered else _SECONDS_FOR_A_START
        return Patience(seconds, at_once=len(self.connection.addresses) - 1)

    async def call(self, method: Any, request: Message, *, try_seconds: float = 30.0) -> Any:
        """One unary call, repeated while it is UNAVAILABLE: every call made through here is idempotent.

        `try_seconds` is for one try. Raises ApiError.
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

    def error(self, rpc_error: grpc.RpcError) -> ApiError:
        """What grpc raised as one of ours. Raises FineTuneFlowError when it is because this client was closed."""
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


class AioTransport(AsyncTransport):
    """On an event loop."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.channel = AioFailoverChannel(connection)

    def stream(self, method: Any, request: Message, *, timeout: float | None = None) -> Stream:
        stream: Stream = method(request, **self._options(timeout))
        return stream

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def transfer(self, work: Callable[[Transport], R]) -> R:
        transport = Transport(self.connection)
        moving = asyncio.ensure_future(asyncio.to_thread(work, transport))
        try:
            return await asyncio.shield(moving)
        except asyncio.CancelledError:
            # Ends the thread's calls, and it with them; until then it may still write to the caller's file.
            transport.close()
            await asyncio.wait([moving])
            if not moving.cancelled():
                moving.exception()
            raise
        finally:
            transport.close()

    async def close(self) -> None:
        self.closed = True
        await self.channel.close()

    async def _once(self, method: Any, request: Message, seconds: float) -> Any:
        return await method(request, **self._options(seconds))


class BlockingTransport(AsyncTransport):
    """Blocks the thread instead of suspending. Safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.channel = FailoverChannel(connection)

    def stream(self, method: Any, request: Message, *, timeout: float | None = None) -> Stream:
        return _Inline(method(request, **self._options(timeout)))

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - there is no event loop

    async def transfer(self, work: Callable[[Transport], R]) -> R:
        return work(Transport.over(self))

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


class Transport:
    """What moves files calls in plain functions. Opened at the first call; safe to share between threads."""

    def __init__(self, connection: Connection) -> None:
        self.inline = BlockingTransport(connection)

    @classmethod
    def over(cls, inline: BlockingTransport) -> Transport:
        """On the connections of another one."""
        transport = cls.__new__(cls)
        transport.inline = inline
        return transport

    @property
    def channel(self) -> Any:
        """For stubs."""
        return self.inline.channel

    def patience(self) -> Patience:
        return self.inline.patience()

    def call(self, method: Any, request: Message, *, timeout: float = 30.0) -> Any:
        """As AsyncTransport.call; `timeout` is in seconds and for one try."""
        return run(self.inline.call(method, request, try_seconds=timeout))

    def stream(self, method: Any, request: Message | Iterator[Message], *, timeout: float | None = None) -> Any:
        """Starts a streaming call; iterating over it raises grpc.RpcError, which `error` translates."""
        return method(request, **self.inline._options(timeout))

    def error(self, rpc_error: grpc.RpcError) -> ApiError:
        return self.inline.error(rpc_error)

    def close(self) -> None:
        self.inline.close()
