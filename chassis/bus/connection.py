"""A connection to NATS: requests between processes, published messages, subscriptions.

Every message is a hint or is repeated until it is answered; nothing depends on the broker to store anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final, Self, TypeVar

import nats
from google.protobuf.message import DecodeError, Message
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription
from nats.js.client import JetStreamContext
from nats.js.errors import NoStreamResponseError

from chassis.bus.subjects import EVERYONE, INBOXES
from chassis.errors import Unavailable

_log = logging.getLogger(__name__)
_M = TypeVar("_M", bound=Message)

_ERROR_HEADER: Final = "Ftf-Error"
_CONCURRENT_HANDLERS: Final = 256
# A pause of this process must not cause dropped messages long before memory is short.
_PENDING_MESSAGES: Final = 1_000_000
_PENDING_BYTES: Final = 256 * 1024 * 1024


class BusUnavailable(Exception):
    """The request failed: no connection, no responder, no answer in time, or the responder failed. Try again later."""


class Unanswered(BusUnavailable):
    """There was no answer in time. A responder may have received the request and may still act on it."""


class ResponderFailed(BusUnavailable):
    """A responder received the request and failed: it had no effect."""


class NoStream(BusUnavailable):
    """JetStream has no stream for the published subject."""


class BusRefused(Exception):
    """The server refuses this user. Do not try again."""


@contextlib.contextmanager
def heeding_cancellation() -> Iterator[None]:
    """Raises CancelledError after the block if the task was cancelled inside it.

    The client drops a cancellation that arrives while it flushes, or turns it into an error of its own: a loop that
    continues after either would never end. Clean-up after an earlier cancellation is not interrupted.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


class Handlers:
    """A subscription that is restored on every new connection."""

    def __init__(self, queues: Mapping[str, str], receive: Callable[[Msg], Awaitable[None]]) -> None:
        """`queues`: the queue group of each subject, empty where every subscriber gets each message."""
        self._queues = queues
        self._receive = receive
        self._subscriptions: list[NatsSubscription] = []
        self.running: set[asyncio.Task[None]] = set()

    async def attach(self, client: Client) -> None:
        """Subscribes on a new connection."""
        with heeding_cancellation():
            self._subscriptions = [
                await client.subscribe(
                    subject,
                    queue=queue,
                    cb=self._receive,
                    pending_msgs_limit=_PENDING_MESSAGES,
                    pending_bytes_limit=_PENDING_BYTES,
                )
                for subject, queue in self._queues.items()
            ]

    async def stop(self) -> None:
        """Unsubscribes, and waits for running handlers."""
        for subscription in self._subscriptions:
            with heeding_cancellation(), contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()
        if self.running:
            await asyncio.wait(self.running, timeout=5.0)


class Connection:
    """A connection that reconnects until it is closed."""

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
        self._options: dict[str, Any] = {
            "servers": [part.strip() for part in url.split(",")],
            "user": user or None,
            "password": password or None,
            "name": name,
            "inbox_prefix": inbox,
            "no_echo": not echo,
            "max_reconnect_attempts": -1,
            "reconnect_time_wait": 0.25,
            "connect_timeout": 2,
            # A stopped process still receives its share of queue-group requests until its pings time out.
            "ping_interval": 10,
            "max_outstanding_pings": 2,
            "error_cb": self._on_error,
            "disconnected_cb": self._on_disconnect,
            "reconnected_cb": self._on_reconnect,
            "closed_cb": self._on_closed,
        }
        if tls is not None:
            # Otherwise the client would send its password in the clear to a server that does not ask for TLS.
            self._options |= {"tls": tls, "tls_handshake_first": True}
        self.connections = 0
        """Number of connections made so far. If it changed, the server may be another one."""
        self._client: Client | None = None
        self._handlers: list[Handlers] = []
        self._attached = asyncio.Event()
        self._lost = asyncio.Event()
        self._refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closing = False
        self._connector: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str,
        user: str = "",
        password: str = "",
        name: str = "",
        wait_seconds: float = 10.0,
        *,
        inbox: str = INBOXES,
        echo: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """Connects. If no server is reachable, returns after `wait_seconds` and keeps trying in the background.

        `inbox` is the prefix of the subjects on which answers are received. Without `echo`, messages sent on this
        connection are not received on it, requests included. With `tls`, the connection is encrypted before anything is
        sent: the server needs `handshake_first` in its configuration, and a certificate with the host name of `url`.

        Raises BusRefused if a server refuses the credentials.
        """
        bus = cls(url, user, password, name, inbox=inbox, echo=echo, tls=tls)
        bus._connector = asyncio.create_task(bus._keep_connected(), name="bus")
        attached = asyncio.ensure_future(bus._attached.wait())
        first: set[asyncio.Future[Any]] = {attached, bus._refused}
        await asyncio.wait(first, timeout=wait_seconds, return_when=asyncio.FIRST_COMPLETED)
        attached.cancel()
        if bus._refused.done():
            await bus.close()
            raise BusRefused(f"the NATS server at {url} refuses user {user!r}")
        if not bus.connected:
            _log.warning("no NATS server at %s yet; trying again", url)
        return bus

    @property
    def connected(self) -> bool:
        """True while there is a connection."""
        return self._client is not None and self._client.is_connected

    async def alive(self, timeout: float) -> bool:  # noqa: ASYNC109 - no answer is an answer
        """Returns True if the server answers a ping within `timeout` seconds."""
        try:
            with heeding_cancellation():
                await self.client().flush(timeout=max(1, round(timeout)))
        except (nats.errors.Error, BusUnavailable, TimeoutError, OSError):
            return False
        return True

    async def close(self) -> None:
        """Unsubscribes, waits for running handlers, and disconnects."""
        self._closing = True
        await asyncio.gather(*(handlers.stop() for handlers in self._handlers))
        if self._connector:
            self._connector.cancel()
            await asyncio.wait({self._connector})
        if self._client and not self._client.is_closed:
            with heeding_cancellation():
                with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                    await self._client.flush(timeout=1)
                await self._client.close()

    async def request(
        self,
        subject: str,
        message: Message,
        response_type: type[_M],
        timeout: float,  # noqa: ASYNC109 - a late answer is the peer's failure, not the caller's cancellation
        *,
        everyone: bool = False,
    ) -> _M:
        """Sends a request to one of the processes that serve the subject, or to all: then the first answer counts.

        The server may choose a stopped process until its pings time out, so a request that is repeated after a time-out
        should go to everyone. Raises Unanswered after `timeout` seconds, BusUnavailable if no process can answer.
        """
        asked = subject + EVERYONE if everyone else subject
        reply = await self._ask(asked, message.SerializeToString(), timeout)
        try:
            return response_type.FromString(reply.data)
        except DecodeError as error:
            raise BusUnavailable(f"the answer on {subject} cannot be decoded as {response_type.__name__}") from error

    async def serve(self, subject: str, queue: str, handler: Callable[[str, bytes], Awaitable[bytes]]) -> Handlers:
        """Answers requests by `handler(subject, data)`, concurrently. One process of the queue group gets each request,
        except those to everyone.

        An exception of the handler is logged, and the caller gets BusUnavailable at once instead of a time-out.
        """
        slots = asyncio.Semaphore(_CONCURRENT_HANDLERS)

        async def answer(msg: Msg) -> None:
            try:
                data, headers = await handler(msg.subject, msg.data), None
            except Unavailable as failure:
                _log.warning("a request on %s was not answered: %s", msg.subject, failure)
                data, headers = b"", {_ERROR_HEADER: "the responder failed"}
            except DecodeError:
                _log.warning("a request on %s cannot be decoded", msg.subject)
                data, headers = b"", {_ERROR_HEADER: "the request cannot be decoded"}
            except Exception:  # noqa: BLE001 - the caller is told; one bad request must not end the service
                _log.exception("a request on %s failed", msg.subject)
                data, headers = b"", {_ERROR_HEADER: "the responder failed"}
            finally:
                slots.release()
            try:
                with heeding_cancellation():
                    await self.client().publish(msg.reply, data, headers=headers)
            except (nats.errors.Error, BusUnavailable, OSError) as error:
                # The caller repeats the request; the handler's decision takes effect once.
                _log.info("an answer on %s was not sent: %s", msg.subject, error)

        async def receive(msg: Msg) -> None:
            await slots.acquire()
            task = asyncio.create_task(answer(msg))
            handlers.running.add(task)
            task.add_done_callback(handlers.running.discard)

        handlers = Handlers({subject: queue, subject + EVERYONE: ""}, receive)
        return await self._attach(handlers)

    async def subscribe(self, subject: str, handler: Callable[[str, bytes], None]) -> Handlers:
        """Calls `handler(subject, data)` for every message, in order; those published while disconnected are missed."""

        async def receive(msg: Msg) -> None:
            try:
                handler(msg.subject, msg.data)
            except Exception:  # noqa: BLE001 - a message is a hint; the next one may be fine
                _log.exception("a message on %s was not handled", msg.subject)

        return await self._attach(Handlers({subject: ""}, receive))

    async def publish(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Sends a message without waiting. Raises BusUnavailable if there is no connection."""
        try:
            with heeding_cancellation():
                await self.client().publish(subject, data, headers=headers)
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"publish on {subject}: {error}") from error

    def client(self) -> Client:
        """Returns the connected client. Raises BusUnavailable if there is no connection."""
        if not self._client or not self._client.is_connected:
            raise BusUnavailable("no connection to NATS")
        return self._client

    @contextlib.asynccontextmanager
    async def jetstream(self) -> AsyncIterator[JetStreamContext]:
        """Yields a JetStream context; failures of its calls in the block become NoStream and BusUnavailable."""
        try:
            with heeding_cancellation():
                yield self.client().jetstream(timeout=5.0)
        except NoStreamResponseError as error:
            raise NoStream("the stream does not exist") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BusUnavailable(f"JetStream: {type(error).__name__} {error}") from error

    async def _keep_connected(self) -> None:
        while True:
            try:
                await self._connect_once()
            except Exception:  # noqa: BLE001 - nothing awaits this task; without it the process would never receive anything again
                _log.exception("connecting to NATS failed; trying again")
            await asyncio.sleep(1.0)

    async def _connect_once(self) -> None:
        self._lost.clear()
        # With unlimited attempts it returns once there is a connection.
        with heeding_cancellation():
            client = await nats.connect(**self._options)
        try:
            # Including those added during the loop.
            for handlers in self._handlers:
                await handlers.attach(client)
            self._client = client
            self.connections += 1
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
            # The server knows the subscription once it has answered a ping that follows it.
            with heeding_cancellation(), contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
                await self._client.flush(timeout=2)
        return handlers

    async def _ask(self, subject: str, data: bytes, seconds: float) -> Msg:
        try:
            with heeding_cancellation():
                reply = await self.client().request(subject, data, timeout=seconds)
        except TimeoutError as error:
            raise Unanswered(f"request on {subject}: no answer in {seconds:g} s") from error
        except (nats.errors.Error, OSError) as error:
            raise BusUnavailable(f"request on {subject}: {type(error).__name__} {error}") from error
        if reply.headers and _ERROR_HEADER in reply.headers:
            raise ResponderFailed(f"request on {subject}: {reply.headers[_ERROR_HEADER]}")
        return reply

    async def _on_error(self, error: Exception) -> None:
        if "authorization violation" in str(error).lower():
            if not self._attached.is_set() and not self._refused.done():
                self._refused.set_result(None)
            _log.error("NATS refuses this process: %s", error)
        elif "permissions violation" in str(error).lower():
            _log.error("the broker does not allow this process what it needs: %s", error)
        else:
            _log.debug("NATS: %s %s", type(error).__name__, error)

    async def _on_disconnect(self) -> None:
        if not self._closing and self._attached.is_set():
            _log.warning("lost the connection to NATS; reconnecting")

    async def _on_reconnect(self) -> None:
        self.connections += 1
        _log.info("connected to NATS again")

    async def _on_closed(self) -> None:
        self._lost.set()
