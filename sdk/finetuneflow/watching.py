"""Watch streams that survive lost connections."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Any

import grpc

from finetuneflow.errors import ApiError, ServerError, Unavailable
from finetuneflow.resources.event import Event
from finetuneflow.resources.job import Job, JobState
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import fine_tuning_service_pb2 as pb

_ALIVE_SECONDS = 2.0
"""A stream that lasts this long after its first message counts as a success, and restarts the back-off."""


class OutOfOrder(Exception):
    """The stream skipped events. Earlier events remain valid; the rest is requested again."""


class Cursor:
    """The position in a job's history: events up to `sequence` were handed out or filtered out.

    With `dense`, nothing is filtered out, so a gap in the sequences reveals a missing event.
    """

    def __init__(self, after_sequence: int, *, dense: bool) -> None:
        self.sequence = after_sequence
        self.ended = False
        self._dense = dense

    def advance(self, response: pb.WatchFineTuningJobResponse) -> Iterator[Event]:
        """Yields each new event once and in order. The cursor advances with each event, so it stays correct if the
        consumer stops in the middle of a batch. Raises OutOfOrder."""
        fresh = {message.sequence: message for message in response.events if message.sequence > self.sequence}
        for sequence, message in sorted(fresh.items()):
            if self._dense and sequence != self.sequence + 1:
                raise OutOfOrder(f"event {sequence} came after {self.sequence}")
            self.sequence = sequence
            event = Event.from_proto(message)
            self.ended = event.kind == "state_changed" and JobState(event.state_changed.state).terminal
            yield event
        if self._dense and response.through_sequence > self.sequence:
            raise OutOfOrder(f"the events from {self.sequence + 1} to {response.through_sequence} did not come")
        self.sequence = max(self.sequence, response.through_sequence)


async def watch(
    transport: CallPolicy,
    method: Any,
    request: pb.WatchFineTuningJobRequest,
    get_job: Callable[[str], Awaitable[Job]],
    *,
    give_up_after_seconds: float,
    on_disconnect: Callable[[Exception], None] | None = None,
    on_reconnect: Callable[[], None] | None = None,
    deadline: float | None = None,
) -> AsyncGenerator[Event, None]:
    """Yields the requested events until the job has ended. `deadline` is a time of time.monotonic().

    Raises TimeoutError after the deadline, and Unavailable or ServerError after `give_up_after_seconds` without
    progress.
    """
    cursor = Cursor(request.after_sequence, dense=not request.kinds and not request.min_severity)
    patience = transport.patience(give_up_after_seconds)
    lost = False
    while True:
        seconds_left = None if deadline is None else deadline - time.monotonic()
        if seconds_left is not None and seconds_left <= 0:
            raise TimeoutError(f"Job {request.job_id} has not ended in time.")
        request.after_sequence = cursor.sequence
        stream = transport.stream(method, request, timeout=seconds_left)
        failure: ApiError = Unavailable(f"The server ended the stream of job {request.job_id} before the job's end.")
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
            if cursor.ended or await _all_seen(get_job, request.job_id, cursor.sequence):
                return
        except OutOfOrder as error:
            failure = Unavailable(f"The server's stream of job {request.job_id} is incomplete: {error}.")
        except grpc.RpcError as rpc_error:
            failure = transport.error(rpc_error)
            if failure.code is grpc.StatusCode.DEADLINE_EXCEEDED and deadline is not None:
                continue
            # A database that is being restarted appears as a server error.
            if not isinstance(failure, (Unavailable, ServerError)):
                raise failure from rpc_error
        finally:
            stream.cancel()
        # A job may be quiet for longer than gateways stay up, but a gateway that sends one message and hangs up must
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


async def _all_seen(get_job: Callable[[str], Awaitable[Job]], job_id: str, sequence: int) -> bool:
    """Returns True if a stream without a terminal event is complete: that event may have been filtered out, or be
    before the caller's cursor."""
    job = await get_job(job_id)
    return job.ended and sequence >= job.last_sequence
