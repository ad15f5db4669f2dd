"""The use of NATS in this system: requests between processes, work queues, published events, live nodes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Final

from google.protobuf.message import DecodeError
from nats.js import api
from nats.js.errors import APIError, NotFoundError
from nats.js.kv import KV_DEL, KV_OP

from chassis.bus import streams, subjects
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

_CHECK_SECONDS: Final = 2.0
_SLOT_TAKEN: Final = 10077
"""JetStream's "maximum messages per subject exceeded": the item is queued already."""


class Bus(Connection):
    """A connection with the operations of this system."""

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        name: str,
        *,
        inbox: str,
        echo: bool,
        tls: ssl.SSLContext | None,
    ) -> None:
        super().__init__(url, user, password, name, inbox=inbox, echo=echo, tls=tls)
        self._work_stream = ""
        self._work_sequence = 0
        self._work_connection = 0
        self._making: asyncio.Task[None] | None = None
        self._consumers: set[tuple[str, str]] = set()
        """The service and pool of each consumer of FTF_WORK that this object has made."""
        self._lacking: set[str] = set()

    async def ensure_streams(self) -> bool:
        """Creates FTF_WORK, FTF_EVENTS and the bucket of nodes if they are missing. Several gateways may call it; the
        broker allows it to them alone.

        Returns True if FTF_WORK is another stream than this object saw last, whoever created it (so also the first
        time): the work it held is gone, and every READY attempt must be published. Raises BusUnavailable if there is
        no FTF_WORK; work continues without the other two.
        """
        created = await streams.make_work_stream(self)
        made = created != self._work_stream
        self._work_stream = created
        if made:
            self._consumers.clear()
        await self._create_optional_streams()
        return made

    async def _create_optional_streams(self) -> None:
        for name, make in (
            (streams.EVENTS_STREAM, streams.make_events_stream),
            (subjects.NODES_BUCKET, streams.make_nodes_bucket),
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

        That is so if it is another stream than this object saw last, an older copy of it, or one without a consumer
        that this object has made, and if the connection is a new one. Costs one request; on a new connection, and if
        FTF_WORK is missing, it creates all streams. Raises BusUnavailable.
        """
        connection = self.connections
        info = await self._work_info() if connection == self._work_connection else None
        if info is None:
            self._work_stream = await streams.make_work_stream(self)
            self._work_connection, self._work_sequence = connection, 0
            self._consumers.clear()
            # Work does not wait for them.
            self._making = asyncio.create_task(self._create_optional_streams())
            return True
        created, sequence = str(info.created), info.state.last_seq
        lost = created != self._work_stream or sequence < self._work_sequence
        if lost or info.state.consumer_count < len(self._consumers):
            lost = True
            self._consumers.clear()
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
        subject = subjects.work(service, pool, item)
        for last in (False, True):
            try:
                await self._make_consumer(service, pool)
                async with self.jetstream() as js:
                    await js.publish(subject, item.SerializeToString(), timeout=5.0)
                return
            except NoStream:
                if last:
                    raise
                self._consumers.clear()
                await streams.make_work_stream(self)
            except BusUnavailable as error:
                cause = error.__cause__
                if isinstance(cause, APIError) and cause.err_code == _SLOT_TAKEN:
                    return
                raise

    async def _make_consumer(self, service: str, pool: str) -> None:
        if (service, pool) not in self._consumers:
            await streams.make_consumer(self, service, pool)
            self._consumers.add((service, pool))

    def work(self, service: str, pool: str) -> WorkQueue:
        """Returns the queue of a pool of a service. Every process of the pool pulls from the same queue."""
        return WorkQueue(self, service, pool)

    async def put_node(self, node: work_pb2.Node) -> None:
        """Publishes the state of a node; the entry expires after NODE_TTL_SECONDS.

        Raises BusUnavailable, also until a gateway has created the bucket.
        """
        async with self.jetstream() as js:
            await js.publish(subjects.node(node.service, node.id), node.SerializeToString(), timeout=2.0)

    async def remove_node(self, service: str, node_id: str) -> None:
        """Removes the entry of a node. Raises BusUnavailable."""
        async with self.jetstream() as js:
            # A marker in place of the entry: purging a subject is a right over the whole stream.
            await js.publish(subjects.node(service, node_id), b"", timeout=2.0, headers={KV_OP: KV_DEL})

    async def nodes(self) -> list[work_pb2.Node]:
        """Returns all live nodes by id; none after a wipe until they publish again. Raises BusUnavailable."""
        # Watchers of a bucket receive nothing for seconds after a wipe; a request for its subjects works at once.
        found = []
        async with self.jetstream() as js:
            try:
                info = await js.stream_info(streams.NODES_STREAM, subjects_filter=subjects.node("*", "*"))
            except NotFoundError:
                return []
            for subject in sorted(info.state.subjects or {}):
                with contextlib.suppress(NotFoundError, DecodeError):
                    message = await js.get_last_msg(streams.NODES_STREAM, subject)
                    node = work_pb2.Node.FromString(message.data or b"")
                    # A user of the broker may write nodes of its own service only; a removed one has no content.
                    if subject == subjects.node(node.service, node.id):
                        found.append(node)
        return sorted(found, key=lambda node: node.id)
