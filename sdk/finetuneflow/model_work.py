"""The methods that evaluations and exports share."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.errors import WorkCancelled, WorkFailed
from finetuneflow.fields import fill
from finetuneflow.paging import paged
from finetuneflow.resources.event import Event, Severity
from finetuneflow.resources.job import JobState
from finetuneflow.resources.work import ModelWork
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import fine_tuning_job_pb2
from finetuneflow.watching import wait, watch, watch_request

R = TypeVar("R", bound=ModelWork)


class AsyncModelWork(Generic[R]):
    """The methods of one kind; a subclass names it and adds `create`."""

    _noun: ClassVar[str]
    """`Evaluation` or `Export`, as in the names of the contract's methods."""
    _api: ClassVar[Any]
    """The module of the requests."""
    _resource: ClassVar[type[Any]]

    def __init__(self, transport: CallPolicy, stub: Any) -> None:
        self._transport = transport
        self._stub = stub

    async def get(self, work_id: str, /) -> R:
        """Returns one of them, with its attempts.

        Args:
            work_id: Its id.

        Returns:
            The evaluation or export.

        Raises:
            NotFound: It does not exist.
        """
        return self._read(await self._call("Get", work_id))

    def list(
        self, *, job_id: str = "", states: Sequence[JobState | str] = (), limit: int | None = None
    ) -> AsyncGenerator[R, None]:
        """Lists those asked for alone and those that jobs left, newest first. Pages are fetched as needed.

        Args:
            job_id: Lists only those of this job's model. Default: all.
            states: Lists only those in one of these states. Default: all.
            limit: Maximum number to list. Default: no limit.

        Yields:
            The evaluations or exports.

        Raises:
            NotFound: The job does not exist.
            InvalidArgument: A state is unknown.
        """
        request = getattr(self._api, f"List{self._noun}sRequest")(
            job_id=job_id,
            states=[enum_number(fine_tuning_job_pb2.JobState.DESCRIPTOR, state, "states") for state in states],
        )
        method = getattr(self._stub, f"List{self._noun}s")
        read: Callable[[Any], R] = self._resource.from_proto
        return paged(self._transport, method, request, f"{self._field}s", limit, read)

    async def cancel(self, work_id: str, /) -> R:
        """Cancels one of them. Cancelling a cancelled one has no effect.

        Args:
            work_id: Its id.

        Returns:
            It: CANCELLED, or CANCELLING until its worker has stopped.

        Raises:
            NotFound: It does not exist.
            FailedPrecondition: It has SUCCEEDED or FAILED, or belongs to a job.
        """
        return self._read(await self._call("Cancel", work_id))

    async def delete(self, work_id: str, /) -> None:
        """Deletes one that has ended, with its history and artifacts.

        Args:
            work_id: Its id.

        Raises:
            NotFound: It does not exist.
            FailedPrecondition: It has not ended, or belongs to a job.
        """
        await self._call("Delete", work_id)

    def watch(
        self,
        work_id: str,
        /,
        *,
        after_sequence: int = 0,
        kinds: Sequence[str] = (),
        min_severity: Severity | str | None = None,
        give_up_after_seconds: float = 60.0,
        on_disconnect: Callable[[Exception], None] | None = None,
        on_reconnect: Callable[[], None] | None = None,
    ) -> AsyncGenerator[Event, None]:
        """Replays the events, then follows live until the end; see `jobs.watch`.

        Args:
            work_id: Id of the evaluation or export.
            after_sequence: Yields only events with a greater sequence. Default 0: from the beginning.
            kinds: Yields only events of these kinds, such as `phase` or `sample`. Default: all.
            min_severity: Yields only events of this severity or a higher one: `debug`, `info`, `warning` or `error`.
                Default: all.
            give_up_after_seconds: Seconds without any gateway after which ServerUnreachable is raised. Default 60.
            on_disconnect: Called with the error when the connection is lost.
            on_reconnect: Called when a gateway answers again.

        Yields:
            The events, ordered by sequence.

        Raises:
            NotFound: It does not exist.
            FailedPrecondition: It belongs to a job; watch the job.
            OutOfRange: after_sequence is beyond the latest event.
            InvalidArgument: A kind or the severity is unknown.
            ServerUnreachable: No gateway answered for give_up_after_seconds.
        """
        request = watch_request(self._request("Watch", work_id), after_sequence, kinds, min_severity)
        return watch(
            self._transport,
            getattr(self._stub, f"Watch{self._noun}"),
            request,
            lambda: self.get(work_id),
            name=f"{self._field} {work_id}",
            give_up_after_seconds=give_up_after_seconds,
            on_disconnect=on_disconnect,
            on_reconnect=on_reconnect,
        )

    async def wait(
        self,
        work_id: str,
        /,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - the same for Client, where no asyncio.timeout helps
        give_up_after_seconds: float = 60.0,
    ) -> R:
        """Waits until it has SUCCEEDED.

        Args:
            work_id: Id of the evaluation or export.
            timeout: Maximum time to wait in seconds. Default: no limit.
            give_up_after_seconds: Seconds without any gateway after which ServerUnreachable is raised. Default 60.

        Returns:
            It, in state SUCCEEDED.

        Raises:
            WorkFailed: It has FAILED.
            WorkCancelled: It was CANCELLED.
            NotFound: It does not exist.
            TimeoutError: It has not ended within `timeout`.
            ServerUnreachable: No gateway answered for give_up_after_seconds.
        """
        ended: R = await wait(
            self._transport,
            getattr(self._stub, f"Watch{self._noun}"),
            self._request("Watch", work_id),
            lambda: self.get(work_id),
            name=f"{self._field} {work_id}",
            timeout=timeout,
            give_up_after_seconds=give_up_after_seconds,
        )
        if ended.state == JobState.FAILED:
            raise WorkFailed(ended)
        if ended.state == JobState.CANCELLED:
            raise WorkCancelled(ended)
        return ended

    async def events(
        self, work_id: str, /, *, after_sequence: int = 0, kinds: Sequence[str] = ()
    ) -> AsyncGenerator[Event, None]:
        """Lists the events so far, oldest first. Pages are fetched as needed.

        Args:
            work_id: Id of the evaluation or export.
            after_sequence: Lists only events with a greater sequence. Default 0: from the beginning.
            kinds: Lists only events of these kinds, such as `phase` or `sample`. Default: all.

        Yields:
            The events.

        Raises:
            NotFound: It does not exist.
            FailedPrecondition: It belongs to a job; list the job's events.
            OutOfRange: after_sequence is beyond the latest event.
            InvalidArgument: A kind is unknown.
        """
        while True:
            request = getattr(self._api, f"List{self._noun}EventsRequest")(page_size=1000)
            fill(request, **{f"{self._field}_id": work_id}, after_sequence=after_sequence, kinds=kinds)
            response = await self._transport.call(getattr(self._stub, f"List{self._noun}Events"), request)
            for message in response.events:
                yield Event.from_proto(message)
            if response.through_sequence <= after_sequence:
                return
            after_sequence = response.through_sequence

    @property
    def _field(self) -> str:
        return self._noun.lower()

    def _read(self, response: Any) -> R:
        resource: R = self._resource.from_proto(getattr(response, self._field))
        return resource

    def _request(self, verb: str, work_id: str) -> Any:
        return getattr(self._api, f"{verb}{self._noun}Request")(**{f"{self._field}_id": work_id})

    async def _call(self, verb: str, work_id: str) -> Any:
        return await self._transport.call(getattr(self._stub, f"{verb}{self._noun}"), self._request(verb, work_id))


def model_name(model: str) -> str:
    """Completes a job's id to the name of its model."""
    return f"ft:{model}" if model.startswith("ftjob_") else model


class BlockingModelWork(Blocking):
    """The same methods without `await`."""

    get = blocking(AsyncModelWork.get)
    list = iterating(AsyncModelWork.list)
    cancel = blocking(AsyncModelWork.cancel)
    delete = blocking(AsyncModelWork.delete)
    watch = iterating(AsyncModelWork.watch)
    wait = blocking(AsyncModelWork.wait)
    events = iterating(AsyncModelWork.events)
