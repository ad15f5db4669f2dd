"""NATS as this system uses it: requests between processes, work queues, published events, who is alive.

What is sent here is a hint or is repeated until it is answered; nothing depends on the broker keeping anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import nats
from google.protobuf.message import DecodeError, Message
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js import api
from nats.js.client import JetStreamContext
from nats.js.errors import APIError, NotFoundError

from finetuneflow.v1 import fine_tuning_job_pb2, work_pb2

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=Message)

CLAIM_SUBJECT: Final = "ftf.v1.claim"
WORK_STREAM: Final = "FTF_WORK"
EVENTS_STREAM: Final = "FTF_EVENTS"
NODES_BUCKET: Final = "ftf_nodes"
NODE_TTL_SECONDS: Final = 15.0

_NODES_STREAM = f"KV_{NODES_BUCKET}"
_ERROR_HEADER = "Ftf-Error"
_SLOT_TAKEN = 10077
"""JetStream's "maximum messages per subject exceeded": the item is queued already."""
_OTHER_CONFIGURATION = 10058
_CONCURRENT_HANDLERS = 256
# A stop-the-world of the client must not turn into dropped messages long before memory is short.
_PENDING_MESSAGES = 1_000_000
_PENDING_BYTES = 256 * 1024 * 1024
_POLL_SECONDS = 5.0
"""Longest single pull. It bounds how long a pull that a dead server has forgotten is waited for."""
_ACK_WAIT_SECONDS = 15.0


def report_subject(job_id: str) -> str:
    """Where the claims of a job report; `*` for all jobs."""
    return f"ftf.v1.report.{job_id}"


def event_subject(job_id: str, kind: str) -> str:
    """Where the accepted events of a job are published."""
    return f"ftf.v1.jobs.{job_id}.{kind}"


def work_subject(service: str, pool: str, item: work_pb2.WorkItem) -> str:
    """The one subject of an attempt. Two messages never wait there."""
    stage = fine_tuning_job_pb2.Stage.Name(item.stage).removeprefix("STAGE_").lower()
    return f"ftf.v1.work.{service}.{pool}.{item.job_id}.{stage}.{item.attempt}"


class BusUnavailable(Exception):
    """Nobody answered: no connection, no responder, no answer in time, or the responder failed. Try again later."""


class BusRefused(Exception):
    """The server refuses this user. Trying again does not help."""


@contextlib.contextmanager
def _heeding_cancellation() -> Iterator[None]:
    """Around calls of the client, which drops a cancellation that reaches it while it flushes, or turns it into an
    error of its own: a loop that goes on after either would never end. Cleaning up after a cancellation goes through.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


class Handlers:
    """A subscription. It outlives reconnects."""

    def __init__(self, subject: str, queue: str, receive: Callable[[Msg], Awaitable[None]]) -> None:
        self._subject = subject
        self._queue = queue
        self._receive = receive
        self._subscription: NatsSubscription | None = None
        self.running: set[asyncio.Task[None]] = set()

    async def attach(self, client: Client) -> None:
        """Subscribes on a new connection."""
        with _heeding_cancellation():
            self._subscription = await client.subscribe(
                self._subject,
                queue=self._queue,
                cb=self._receive,
                pending_msgs_limit=_PENDING_MESSAGES,
                pending_bytes_limit=_PENDING_BYTES,
            )

    async def stop(self) -> None:
        """Takes no new messages, and waits for handlers that run."""
        if self._subscription:
            with _heeding_cancellation(), contextlib.suppress(nats.errors.Error):
                await self._subscription.unsubscribe()
        if self.running:
            await asyncio.wait(self.running, timeout=5.0)


class Bus:
    """One connection, for ever reconnecting."""

    def __init__(self, url: str, user: str, password: str, name: str) -> None:
        self._options: dict[str, Any] = {
            "servers": [part.strip() for part in url.split(",")],
            "user": user or None,
            "password": password or None,
            "name": name,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.25,
            "connect_timeout": 2,
            # A stopped process keeps getting its share of queue-group requests until its pings time out.
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
            "reconnected_cb": self._on_reconnect,
            "closed_cb": self._on_closed,
        }
        self._client: Client | None = None
        self._work_stream = ""
        self._lacking: set[str] = set()
        self._handlers: list[Handlers] = []
        self._attached = asyncio.Event()
        self._lost = asyncio.Event()
        self._refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False
        self._connector: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls, url: str, user: str = "", password: str = "", name: str = "", wait_seconds: float = 10.0
    ) -> Bus:
        """Connects. Without a server it returns after `wait_seconds` and goes on trying in the background.

        BusRefused when a server refuses the credentials.
        """
        bus = cls(url, user, password, name)
        bus._connector = asyncio.create_task(bus._keep_connected(), name="bus")
        attached = asyncio.ensure_future(bus._attached.wait())
        first: set[asyncio.Future[Any]] = {attached, bus._refused}
        await asyncio.wait(first, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
        attached.cancel()
        if bus._refused.done():
            await bus.close()
            raise BusRefused(f"the NATS server at {url} refuses user {user!r}")
        if not bus.connected:
            _log.warning("no NATS server at %s yet; trying on", url)
        return bus

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now."""
        return self._client is not None and self._client.is_connected

    async def alive(self, timeout: float) -> bool:  # noqa: ASYNC109 - no answer is an answer
        """Whether the server answers a ping within `timeout` seconds."""
        try:
            with _heeding_cancellation():
                await self._connection().flush(timeout=max(1, round(timeout)))
        except (nats.errors.Error, BusUnavailable, TimeoutError, OSError):
            return False
        return True

    async def close(self) -> None:
        """Ends subscriptions, lets running handlers answer, and disconnects."""
        self._closing = True
        await asyncio.gather(*(handlers.stop() for handlers in self._handlers))
        if self._connector:
            self._connector.cancel()
            await asyncio.wait({self._connector})
        if self._client and not self._client.is_closed:
            with _heeding_cancellation():
                with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                    await self._client.flush(timeout=1)
                await self._client.close()

    async def request(
        self,
        subject: str,
        message: Message,
        response_type: type[_M],
        timeout: float,  # noqa: ASYNC109 - a late answer is the peer's failure, not the caller's cancellation
    ) -> _M:
        """Asks whoever serves the subject. BusUnavailable when there is no answer within `timeout` seconds."""
        reply = await self._ask(subject, message.SerializeToString(), timeout)
        try:
            return response_type.FromString(reply.data)
        except DecodeError as error:
            raise BusUnavailable(f"the answer on {subject} is no {response_type.__name__}") from error

    async def serve(self, subject: str, queue: str, handler: Callable[[bytes], Awaitable[bytes]]) -> Handlers:
        """Answers requests, concurrently; one process of the queue group gets each.

        A handler that raises is logged, and its caller hears BusUnavailable at once instead of a time-out.
        """
        slots = asyncio.Semaphore(_CONCURRENT_HANDLERS)

        async def answer(msg: Msg) -> None:
            try:
                data, headers = await handler(msg.data), None
            except Exception:  # noqa: BLE001 - the caller is told; one bad request must not end the service
                _log.exception("a request on %s failed", msg.subject)
                data, headers = b"", {_ERROR_HEADER: "the responder failed"}
            finally:
                slots.release()
            try:
                with _heeding_cancellation():
                    await self._connection().publish(msg.reply, data, headers=headers)
            except (nats.errors.Error, BusUnavailable, OSError) as error:
                # The caller asks again; whatever the handler decided, it decides once.
                _log.info("an answer on %s was not sent: %s", msg.subject, error)

        async def receive(msg: Msg) -> None:
            await slots.acquire()
            task = asyncio.create_task(answer(msg))
            handlers.running.add(task)
            task.add_done_callback(handlers.running.discard)

        handlers = Handlers(subject, queue, receive)
        return await self._attach(handlers)

    async def subscribe(self, subject: str, handler: Callable[[str, bytes], None]) -> Handlers:
        """Hands every message to `handler(subject, data)`, in order. What is published while disconnected is missed."""

        async def receive(msg: Msg) -> None:
            try:
                handler(msg.subject, msg.data)
            except Exception:  # noqa: BLE001 - what is heard here is a hint; the next message may be fine
                _log.exception("a message on %s was not handled", msg.subject)

        return await self._attach(Handlers(subject, "", receive))

    async def publish(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends without waiting for anybody. BusUnavailable when there is no connection."""
        try:
            with _heeding_cancellation():
                await self._connection().publish(subject, data, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"publish on {subject}: {error}") from error

    async def ensure_streams(self) -> bool:
        """Makes what is missing of FTF_WORK, FTF_EVENTS and the bucket of nodes; any number of processes may do so.

        True when FTF_WORK is another one than this object saw last, whoever made it (so the first time, too): the work
        it held is gone, and every READY attempt is to be published. BusUnavailable when there is no FTF_WORK; work
        goes on without the other two.
        """
        created = await self._make_work_stream()
        made = created != self._work_stream
        self._work_stream = created
        for name, make in ((EVENTS_STREAM, self._make_events_stream), (NODES_BUCKET, self._make_nodes_bucket)):
            try:
                await make()
            except BusUnavailable as error:
                if name not in self._lacking:
                    _log.warning("there is no %s: %s", name, error)
                self._lacking.add(name)
            else:
                self._lacking.discard(name)
        return made

    async def _make_work_stream(self) -> str:
        async with self._jetstream() as js:
            return await self._ensure_stream(
                js,
                api.StreamConfig(
                    name=WORK_STREAM,
                    subjects=["ftf.v1.work.>"],
                    retention=api.RetentionPolicy.WORK_QUEUE,
                    discard=api.DiscardPolicy.NEW,
                    discard_new_per_subject=True,
                    max_msgs_per_subject=1,
                    storage=api.StorageType.FILE,
                ),
            )

    async def _make_events_stream(self) -> None:
        async with self._jetstream() as js:
            await self._ensure_stream(
                js,
                api.StreamConfig(
                    name=EVENTS_STREAM,
                    subjects=["ftf.v1.jobs.>"],
                    retention=api.RetentionPolicy.LIMITS,
                    discard=api.DiscardPolicy.OLD,
                    max_age=7 * 86_400,
                    # The server sets it aside at once, or refuses the stream.
                    max_bytes=256 * 1024**2,
                    storage=api.StorageType.FILE,
                ),
            )

    async def _make_nodes_bucket(self) -> None:
        async with self._jetstream() as js:
            await js.create_key_value(
                api.KeyValueConfig(bucket=NODES_BUCKET, ttl=NODE_TTL_SECONDS, history=1, storage=api.StorageType.MEMORY)
            )

    async def publish_work(self, service: str, pool: str, item: work_pb2.WorkItem) -> None:
        """Queues an attempt; one that is queued already is fine. Never with a Msg-Id: the duplicate window would
        swallow a re-dispatch. BusUnavailable when it is not known to be stored."""
        subject = work_subject(service, pool, item)
        for last in (False, True):
            try:
                async with self._jetstream() as js:
                    await js.publish(subject, item.SerializeToString(), timeout=5.0)
                return
            except _NoStream:
                if last:
                    raise
                await self._make_work_stream()
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
                async with self._jetstream() as js:
                    await js.publish(f"$KV.{NODES_BUCKET}.{node.id}", node.SerializeToString(), timeout=2.0)
                return
            except _NoStream:
                if last:
                    raise
                await self._make_nodes_bucket()

    async def remove_node(self, node_id: str) -> None:
        """Says that a node has left. BusUnavailable."""
        async with self._jetstream() as js:
            await js.purge_stream(_NODES_STREAM, subject=f"$KV.{NODES_BUCKET}.{node_id}")

    async def nodes(self) -> list[work_pb2.Node]:
        """Every live node, by id. Empty after a wipe until the nodes say so again. BusUnavailable."""
        # Watchers of a bucket stay deaf for seconds after a wipe; asking for the subjects does not.
        prefix = f"$KV.{NODES_BUCKET}."
        found = []
        async with self._jetstream() as js:
            try:
                info = await js.stream_info(_NODES_STREAM, subjects_filter=f"{prefix}>")
            except NotFoundError:
                return []
            for subject in sorted(info.state.subjects or {}):
                with contextlib.suppress(NotFoundError):
                    message = await js.get_last_msg(_NODES_STREAM, subject)
                    found.append(work_pb2.Node.FromString(message.data or b""))
        return found

    async def _keep_connected(self) -> None:
        while True:
            try:
                await self._connect_once()
            except Exception:  # noqa: BLE001 - nobody waits for this task; a process without it stays deaf for ever
                _log.exception("connecting to NATS failed; trying again")
            await asyncio.sleep(1.0)

    async def _connect_once(self) -> None:
        self._lost.clear()
        # With unlimited attempts it returns once there is a connection, however long that takes.
        with _heeding_cancellation():
            client = await nats.connect(**self._options)
        try:
            # Also those that are added meanwhile.
            for handlers in self._handlers:
                await handlers.attach(client)
            self._client = client
            self._attached.set()
            # The client reconnects by itself, until a server refuses it: then it is closed for good.
            await self._lost.wait()
        finally:
            self._attached.clear()
            if self._client is not client:
                await client.close()

    async def _attach(self, handlers: Handlers) -> Handlers:
        self._handlers.append(handlers)
        if self._client and self._attached.is_set():
            await handlers.attach(self._client)
            # The subscription is known to the server once it has answered what follows.
            with _heeding_cancellation(), contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                await self._client.flush(timeout=2)
        return handlers

    def _connection(self) -> Client:
        if not self._client or not self._client.is_connected:
            raise BusUnavailable("no connection to NATS")
        return self._client

    async def _ask(self, subject: str, data: bytes, seconds: float) -> Msg:
        try:
            with _heeding_cancellation():
                reply = await self._connection().request(subject, data, timeout=seconds)
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BusUnavailable(f"request on {subject}: {type(error).__name__} {error}") from error
        if reply.headers and _ERROR_HEADER in reply.headers:
            raise BusUnavailable(f"request on {subject}: {reply.headers[_ERROR_HEADER]}")
        return reply

    @contextlib.asynccontextmanager
    async def _jetstream(self) -> Any:
        try:
            with _heeding_cancellation():
                yield self._connection().jetstream(timeout=5.0)
        except nats.js.errors.NoStreamResponseError as error:
            raise _NoStream("the stream does not exist") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BusUnavailable(f"JetStream: {type(error).__name__} {error}") from error

    async def _ensure_stream(self, js: JetStreamContext, config: api.StreamConfig) -> str:
        """The moment the stream was made: its identity."""
        try:
            info = await js.add_stream(config)
        except APIError as error:
            if error.err_code != _OTHER_CONFIGURATION:
                raise
            info = await js.update_stream(config)
        return str(info.created)

    async def _on_error(self, error: Exception) -> None:
        if "authorization violation" in str(error).lower():
            if not self._attached.is_set() and not self._refused.done():
                self._refused.set_result(None)
            _log.error("NATS refuses this process: %s", error)
        else:
            _log.debug("NATS: %s %s", type(error).__name__, error)

    async def _on_disconnect(self) -> None:
        if not self._closing and self._attached.is_set():
            _log.warning("lost the connection to NATS; reconnecting")

    async def _on_reconnect(self) -> None:
        _log.info("connected to NATS again")

    async def _on_closed(self) -> None:
        self._lost.set()


class _NoStream(BusUnavailable):
    pass


@dataclass(frozen=True)
class WorkMessage:
    """A work item in hand. Without an ack it comes again, to any process of the pool."""

    item: work_pb2.WorkItem
    reply: str
    bus: Bus

    async def ack(self) -> None:
        """It is done with. One that gets lost brings the item back; its claim is refused then."""
        with contextlib.suppress(BusUnavailable):
            await self.bus.publish(self.reply, b"+ACK")

    async def nak(self, delay_seconds: float) -> None:
        """Bring it again after the delay."""
        body = json.dumps({"delay": int(delay_seconds * 1e9)})
        with contextlib.suppress(BusUnavailable):
            await self.bus.publish(self.reply, f"-NAK {body}".encode())


class WorkQueue:
    """Pulls one item at a time with plain requests: there is no subscription that could go deaf."""

    def __init__(self, bus: Bus, service: str, pool: str) -> None:
        self._bus = bus
        self._durable = f"{service}_{pool}"
        self._subject = f"ftf.v1.work.{service}.{pool}.>"
        self._away = False

    async def next(self, timeout: float) -> WorkMessage | None:  # noqa: ASYNC109 - a long poll, not a failure
        """The next item, or None when there was none for `timeout` seconds or the server is away."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = await self._pull(min(left, _POLL_SECONDS))
            except _ConsumerGone:
                try:
                    await self._recreate()
                except BusUnavailable as error:
                    self._note_outage(error)
                    await asyncio.sleep(min(left, 0.5))
            except BusUnavailable as error:
                self._note_outage(error)
                await asyncio.sleep(min(left, 0.25))
            else:
                self._away = False
                if message:
                    return message
        return None

    def _note_outage(self, error: BusUnavailable) -> None:
        if not self._away:
            _log.warning("no work comes from %s; trying on: %s", self._subject, error)
        self._away = True

    async def _pull(self, seconds: float) -> WorkMessage | None:
        body = json.dumps({"batch": 1, "expires": int(max(seconds, 0.1) * 1e9)}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{WORK_STREAM}.{self._durable}"
        client = self._bus._connection()
        try:
            # A delivered item bears its own subject, which the shared inbox of new-style requests cannot place.
            with _heeding_cancellation():
                msg = await client.request(subject, body, timeout=seconds + 1.0, old_style=True)
        except nats.errors.NoRespondersError as error:
            raise _ConsumerGone("nobody answers") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BusUnavailable(f"request on {subject}: {type(error).__name__} {error}") from error
        status = (msg.headers or {}).get("Status")
        if status in ("404", "408"):
            return None
        if status:
            raise _ConsumerGone(f"{status} {(msg.headers or {}).get('Description', '')}")
        try:
            item = work_pb2.WorkItem.FromString(msg.data)
        except DecodeError:
            _log.error("dropped an undecodable work item on %s", msg.subject)
            await self._bus.publish(msg.reply, b"+TERM")
            return None
        return WorkMessage(item, msg.reply, self._bus)

    async def _recreate(self) -> None:
        await self._bus._make_work_stream()
        async with self._bus._jetstream() as js:
            await js.add_consumer(
                WORK_STREAM,
                api.ConsumerConfig(
                    durable_name=self._durable,
                    filter_subject=self._subject,
                    ack_policy=api.AckPolicy.EXPLICIT,
                    ack_wait=_ACK_WAIT_SECONDS,
                    max_deliver=-1,
                    max_ack_pending=10_000,
                ),
            )


class _ConsumerGone(Exception):
    pass
