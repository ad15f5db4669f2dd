"""The use of NATS in this system: requests between processes, work queues, published events, live nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Final

from nats.js import api
from nats.js.errors import APIError, NotFoundError

from chassis.bus import streams
from chassis.bus.connection import (
    BusRefused,
    BusUnavailable,
    Connection,
    Handlers,
    NoStream,
    ResponderFailed,
    Unanswered,
)
from chassis.bus.work_queue import WorkMessage, WorkQueue
from finetuneflow.v1 import work_pb2

__all__ = [
    "Bus",
    "BusRefused",
    "BusUnavailable",
    "Handlers",
    "ResponderFailed",
    "Unanswered",
    "WorkMessage",
    "WorkQueue",
]

_log = logging.getLogger(__name__)

CLAIM_SUBJECT: Final = "ftf.v1.claim"
_CHECK_SECONDS: Final = 2.0
_SLOT_TAKEN: Final = 10077
"""JetStream's "maximum messages per subject exceeded": the item is queued already."""


def report_subject(job_id: str) -> str:
    """Returns the subject of reports for a job; `*` for all jobs."""
    return f"ftf.v1.report.{job_id}"


def event_subject(job_id: str, kind: str) -> str:
    """Returns the subject on which accepted events of a job are published."""
    return f"ftf.v1.jobs.{job_id}.{kind}"


class Bus(Connection):
    """A connection with the operations of this system."""

    def __init__(self, url: str, user: str, password: str, name: str, *, echo: bool = True) -> None:
        super().__init__(url, user, password, name, echo=echo)
        self._work_stream = ""
        self._work_sequence = 0
        self._work_connection = 0
        self._making: asyncio.Task[None] | None = None
        self._lacking: set[str] = set()

    async def ensure_streams(self) -> bool:
        """Creates FTF_WORK, FTF_EVENTS and the bucket of nodes if they are missing. Several processes may call it.

        Returns True if FTF_WORK is another stream than this object saw last, whoever created it (so also the first
        time): the work it held is gone, and every READY attempt must be published. Raises BusUnavailable if there is
        no FTF_WORK; work continues without the other two.
        """
        created = await streams.make_work_stream(self)
        made = created != self._work_stream
        self._work_stream = created
        await self._create_optional_streams()
        return made

    async def _create_optional_streams(self) -> None:
        for name, make in (
            (streams.EVENTS_STREAM, streams.make_events_stream),
            (streams.NODES_BUCKET, streams.make_nodes_bucket),
        ):
            try:
                await make(self)
            except BusUnavailable as error:
                if name not in self._lacking:
                    _log.warning("%s could not be created: %s", name, error)
                self._lacking.add(name)
            else:
                self._lacking.discard(name)

    async def work_lost(self) -> bool:
        """Returns True if FTF_WORK may have lost queued work.

        That is so if it is another stream than this object saw last, an older copy of it, or if the connection is a
        new one. Costs one request; on a new connection, and if FTF_WORK is missing, it creates all streams. Raises
        BusUnavailable.
        """
        connection = self.connections
        info = await self._work_info() if connection == self._work_connection else None
        if info is None:
            self._work_stream = await streams.make_work_stream(self)
            self._work_connection, self._work_sequence = connection, 0
            # Work does not wait for them.
            self._making = asyncio.create_task(self._create_optional_streams())
            return True
        created, sequence = str(info.created), info.state.last_seq
        lost = created != self._work_stream or sequence < self._work_sequence
        self._work_stream, self._work_sequence = created, sequence
        return lost

    async def _work_info(self) -> api.StreamInfo | None:
        async with self.jetstream() as js:
            try:
                # A request that is sent while the connection breaks is never answered.
                async with asyncio.timeout(_CHECK_SECONDS):
                    return await js.stream_info(streams.WORK_STREAM)
            except NotFoundError:
                return None

    async def close(self) -> None:
        """Closes the connection, and ends tasks in progress."""
        if self._making:
            self._making.cancel()
            await asyncio.wait({self._making})
        await super().close()

    async def publish_work(self, service: str, pool: str, item: work_pb2.WorkItem) -> None:
        """Queues an attempt; does nothing if it is queued already.

        Never with a Msg-Id: the duplicate window would drop a repeated dispatch. Raises BusUnavailable if the item may
        not be stored.
        """
        subject = streams.work_subject(service, pool, item)
        for last in (False, True):
            try:
                async with self.jetstream() as js:
                    await js.publish(subject, item.SerializeToString(), timeout=5.0)
                return
            except NoStream:
                if last:
                    raise
                await streams.make_work_stream(self)
            except BusUnavailable as error:
                cause = error.__cause__
                if isinstance(cause, APIError) and cause.err_code == _SLOT_TAKEN:
                    return
                raise

    def work(self, service: str, pool: str) -> WorkQueue:
        """Returns the queue of a pool of a service. Every process of the pool pulls from the same queue."""
        return WorkQueue(self, service, pool)

    async def put_node(self, node: work_pb2.Node) -> None:
        """Publishes the state of a node; the entry expires after NODE_TTL_SECONDS. Raises BusUnavailable."""
        for last in (False, True):
            try:
                async with self.jetstream() as js:
                    await js.publish(f"$KV.{streams.NODES_BUCKET}.{node.id}", node.SerializeToString(), timeout=2.0)
                return
            except NoStream:
                if last:
                    raise
                await streams.make_nodes_bucket(self)

    async def remove_node(self, node_id: str) -> None:
        """Removes the entry of a node. Raises BusUnavailable."""
        async with self.jetstream() as js:
            await js.purge_stream(streams.NODES_STREAM, subject=f"$KV.{streams.NODES_BUCKET}.{node_id}")

    async def nodes(self) -> list[work_pb2.Node]:
        """Returns all live nodes by id; none after a wipe until they publish again. Raises BusUnavailable."""
        # Watchers of a bucket receive nothing for seconds after a wipe; a request for its subjects works at once.
        prefix = f"$KV.{streams.NODES_BUCKET}."
        found = []
        async with self.jetstream() as js:
            try:
                info = await js.stream_info(streams.NODES_STREAM, subjects_filter=f"{prefix}>")
            except NotFoundError:
                return []
            for subject in sorted(info.state.subjects or {}):
                with contextlib.suppress(NotFoundError):
                    message = await js.get_last_msg(streams.NODES_STREAM, subject)
                    found.append(work_pb2.Node.FromString(message.data or b""))
        return found
