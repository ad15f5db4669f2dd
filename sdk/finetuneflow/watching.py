"""Watch streams that survive lost connections."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import grpc

from finetuneflow.enums import enum_number
from finetuneflow.errors import ApiError, ServerError, Unavailable
from finetuneflow.fields import fill
from finetuneflow.resources.event import Event, Severity
from finetuneflow.resources.job import Job, JobState
from finetuneflow.resources.work import ModelWork
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import event_pb2

W = TypeVar("W", bound=Job | ModelWork)
M = TypeVar("M", bound=Any)

_ALIVE_SECONDS = 2.0
"""A stream that lasts this long after its first message counts as a success, and restarts the back-off."""


class OutOfOrder(Exception):
    """The stream skipped events. Earlier events remain valid; the rest is requested again."""


class Cursor:
    """The position in a history: events up to `sequence` were handed out or filtered out.

    With `dense`, nothing is filtered out, so a gap in the sequences reveals a missing event.
    """

    def __init__(self, after_sequence: int, *, dense: bool) -> None:
        self.sequence = after_sequence
        self.ended = False
        self._dense = dense

    def advance(self, response: Any) -> Iterator[Event]:
        """Yields each new event once and in order. The cursor advances with each event, so it stays correct if the
        consumer stops in the middle of a batch. Raises OutOfOrder."""
        fresh = {message.sequence: message for message in response.events if message.sequence > self.sequence}
        for sequence, message in sorted(fresh.items()):
            if self._dense and sequence != self.sequence + 1:
                raise OutOfOrder(_missing(self.sequence + 1, sequence - 1))
            self.sequence = sequence
            event = Event.from_proto(message)
            self.ended = event.kind == "state_changed" and JobState(event.state_changed.state).terminal
            yield event
        if self._dense and response.through_sequence > self.sequence:
            raise OutOfOrder(_missing(self.sequence + 1, response.through_sequence))
        self.sequence = max(self.sequence, response.through_sequence)


def _missing(first: int, last: int) -> str:
    return f"event {first} is missing" if first == last else f"the events {first} to {last} are missing"


async def watch(
    transport: CallPolicy,
    method: Any,
    request: Any,
    get: Callable[[], Awaitable[Job | ModelWork]],
    *,
    name: str,
    give_up_after_seconds: float,
    on_disconnect: Callable[[Exception], None] | None = None,
    on_reconnect: Callable[[], None] | None = None,
    deadline: float | None = None,
) -> AsyncGenerator[Event, None]:
    """Yields the requested events until the work has ended. `get` reads the work, `name` is for messages: "job
    ftjob_…"; `deadline` is a time of time.monotonic().

    Raises TimeoutError after the deadline, and Unavailable or ServerError after `give_up_after_seconds` without
    progress.
    """
    cursor = Cursor(request.after_sequence, dense=not request.kinds and not request.min_severity)
    patience = transport.patience(give_up_after_seconds)
    lost = False
    while True:
        seconds_left = None if deadline is None else deadline - time.monotonic()
        if seconds_left is not None and seconds_left <= 0:
            raise TimeoutError(f"{name[0].upper()}{name[1:]} has not ended in time.")
        request.after_sequence = cursor.sequence
        stream = transport.stream(method, request, timeout=seconds_left)
        failure: ApiError = Unavailable(f"The server closed the event stream of {name} before it ended.")
        first: float | None = None
        try:
            async for response in stream:
                first = time.monotonic() if first is None else first
                if lost and on_reconnect is not None:
                    on_reconnect()
                lost = False
                before = cursor.sequence
                for event in cursor.advance(response):
                    yield event
                if cursor.sequence > before:
                    patience.reset()
            if cursor.ended or await _is_complete(get, cursor.sequence):
                return
        except OutOfOrder as error:
            failure = Unavailable(f"The server's stream of {name} is incomplete: {error}.")
        except grpc.RpcError as rpc_error:
            failure = transport.error(rpc_error)
            if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline is not None:
                continue
            # A database that is being restarted appears as a server error.
            if not isinstance(failure, (Unavailable, ServerError)):
                raise failure from rpc_error
        finally:
            stream.cancel()
        # Work may be quiet for longer than gateways stay up, but a gateway that sends one message and hangs up must
        # not be retried forever.
        if first is not None and time.monotonic() - first >= _ALIVE_SECONDS:
            patience.reset()
        if not lost and on_disconnect is not None:
            on_disconnect(failure)
        lost = True
        delay = patience.next_delay()
        if delay is None:
            raise failure
        await transport.sleep(delay)


async def _is_complete(get: Callable[[], Awaitable[Job | ModelWork]], sequence: int) -> bool:
    """Returns True if a stream without a terminal event is complete: that event may have been filtered out, or be
    before the caller's cursor."""
    work = await get()
    return work.ended and sequence >= work.last_sequence


def watch_request(
    request: M, after_sequence: int, kinds: Sequence[str], min_severity: Severity | str | None, **id_field: str
) -> M:
    """Fills in a Watch request of any kind. Raises InvalidArgument for an unknown severity."""
    severity = enum_number(event_pb2.Severity.DESCRIPTOR, min_severity, "min_severity") if min_severity else None
    filled: M = fill(request, after_sequence=after_sequence, kinds=kinds, min_severity=severity, **id_field)
    return filled


async def wait(
    transport: CallPolicy,
    method: Any,
    request: Any,
    get: Callable[[], Awaitable[W]],
    *,
    name: str,
    timeout: float | None,  # noqa: ASYNC109 - the same for Client, where no asyncio.timeout helps
    give_up_after_seconds: float,
) -> W:
    """Returns the work in its terminal state. `request` needs its id only. Raises what `watch` raises."""
    deadline = None if timeout is None else time.monotonic() + timeout
    work = await get()
    if work.ended:
        return work
    request = watch_request(request, work.last_sequence, ("state_changed",), None)
    events = watch(
        transport, method, request, get, name=name, give_up_after_seconds=give_up_after_seconds, deadline=deadline
    )
    async for _ in events:
        pass
    return await get()
