"""NATS as this system uses it: requests between processes, work queues, published events, who is alive."""

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
    """Where the claims of a job report; `*` for all jobs."""
    return f"ftf.v1.report.{job_id}"


def event_subject(job_id: str, kind: str) -> str:
    """Where the accepted events of a job are published."""
    return f"ftf.v1.jobs.{job_id}.{kind}"


class Bus(Connection):
    """A connection that knows what goes over it."""

    def __init__(self, url: str, user: str, password: str, name: str, *, echo: bool = True) -> None:
        super().__init__(url, user, password, name, echo=echo)
        self._work_stream = ""
        self._work_sequence = 0
        self._work_connection = 0
        self._making: asyncio.Task[None] | None = None
        self._lacking: set[str] = set()

    async def ensure_streams(self) -> bool:
        """Makes what is missing of FTF_WORK, FTF_EVENTS and the bucket of nodes; any number of processes may do so.

        True when FTF_WORK is another one than this object saw last, whoever made it (so the first time, too): the work
        it held is gone, and every READY attempt is to be published. BusUnavailable when there is no FTF_WORK; work
        goes on without the other two.
        """
        created = await streams.make_work_stream(self)
        made = created != self._work_stream
        self._work_stream = created
        await self._make_the_rest()
        return made

    async def _make_the_rest(self) -> None:
        for name, make in (
            (streams.EVENTS_STREAM, streams.make_events_stream),
            (streams.NODES_BUCKET, streams.make_nodes_bucket),
        ):
            try:
                await make(self)
            except BusUnavailable as error:
                if name not in self._lacking:
                    _log.warning("there is no %s: %s", name, error)
                self._lacking.add(name)
            else:
                self._lacking.discard(name)

    async def work_lost(self) -> bool:
        """Whether FTF_WORK may lack what was queued: it is another one than this object saw last, an older copy of it,
        or the connection is a new one, behind which it may be either. Cheap, one request; on a new connection, and
        where FTF_WORK is missing, it has all streams made. BusUnavailable."""
        connection = self.connections
        info = await self._work_info() if connection == self._work_connection else None
        if info is None:
            self._work_stream = await streams.make_work_stream(self)
            self._work_connection, self._work_sequence = connection, 0
            # Work does not wait for them.
            self._making = asyncio.create_task(self._make_the_rest())
            return True
        created, sequence = str(info.created), info.state.last_seq
        lost = created != self._work_stream or sequence < self._work_sequence
        self._work_stream, self._work_sequence = created, sequence
        return lost

    async def _work_info(self) -> api.StreamInfo | None:
        async with self.jetstream() as js:
            try:
                # What is asked while the connection breaks is never answered.
                async with asyncio.timeout(_CHECK_SECONDS):
                    return await js.stream_info(streams.WORK_STREAM)
            except NotFoundError:
                return None

    async def close(self) -> None:
        """Also ends what is under way here."""
        if self._making:
            self._making.cancel()
            await asyncio.wait({self._making})
        await super().close()

    async def publish_work(self, service: str, pool: str, item: work_pb2.WorkItem) -> None:
        """Queues an attempt; one that is queued already is fine. Never with a Msg-Id: the duplicate window would
        swallow a re-dispatch. BusUnavailable when it is not known to be stored."""
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
        """What is queued for a pool of a service. Every process of the pool pulls from the same queue."""
        return WorkQueue(self, service, pool)

    async def put_node(self, node: work_pb2.Node) -> None:
        """Says that a node is alive; it is forgotten after NODE_TTL_SECONDS. BusUnavailable."""
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
        """Says that a node has left. BusUnavailable."""
        async with self.jetstream() as js:
            await js.purge_stream(streams.NODES_STREAM, subject=f"$KV.{streams.NODES_BUCKET}.{node_id}")

    async def nodes(self) -> list[work_pb2.Node]:
        """Every live node, by id. Empty after a wipe until the nodes say so again. BusUnavailable."""
        # Watchers of a bucket stay deaf for seconds after a wipe; asking for the subjects does not.
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
