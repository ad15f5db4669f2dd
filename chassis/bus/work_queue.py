"""The queue of a pool of a service, pulled item by item."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import dataclass
from typing import Final

import nats
from google.protobuf.message import DecodeError

from chassis.bus import streams, subjects
from chassis.bus.connection import BusUnavailable, Connection, heeding_cancellation
from finetuneflow.v1 import work_pb2

_log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 5.0
"""Longest single pull: limits the wait for a pull that a dead server has lost."""


@dataclass(frozen=True)
class WorkMessage:
    """A received work item. Without an ack it is delivered again, to any process of the pool."""

    item: work_pb2.WorkItem
    reply: str
    connection: Connection

    async def ack(self) -> None:
        """Acknowledges the item. If the ack is lost, the item is delivered again and its claim is refused."""
        with contextlib.suppress(BusUnavailable):
            await self.connection.publish(self.reply, b"+ACK")

    async def hold(self) -> None:
        """Extends the time that the broker waits for the ack."""
        with contextlib.suppress(BusUnavailable):
            await self.connection.publish(self.reply, b"+WPI")

    async def nak(self, delay_seconds: float) -> None:
        """Asks for the item to be delivered again after the delay."""
        body = json.dumps({"delay": int(delay_seconds * 1e9)})
        with contextlib.suppress(BusUnavailable):
            await self.connection.publish(self.reply, f"-NAK {body}".encode())


class WorkQueue:
    """Pulls one item at a time with plain requests: there is no subscription that could be lost unnoticed."""

    def __init__(self, connection: Connection, service: str, pool: str) -> None:
        self._connection = connection
        self._durable = subjects.consumer(service, pool)
        self._subject = subjects.queue(service, pool)
        self._away = False

    async def next(self, timeout: float) -> WorkMessage | None:  # noqa: ASYNC109 - a long poll, not a failure
        """Returns the next item, or None if there was none for `timeout` seconds or the server is unavailable."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                message = await self._pull(min(left, _POLL_SECONDS))
            except _ConsumerGone as error:
                # The gateway that queues the pool's first item creates it.
                if not self._away:
                    _log.info("waiting for a gateway to create the queue of %s: %s", self._subject, error)
                self._away = True
                await asyncio.sleep(min(left, 0.25))
            except BusUnavailable as error:
                if not self._away:
                    _log.warning("work cannot be pulled from %s; trying again: %s", self._subject, error)
                self._away = True
                await asyncio.sleep(min(left, 0.25))
            else:
                self._away = False
                if message:
                    return message
        return None

    async def _pull(self, seconds: float) -> WorkMessage | None:
        body = json.dumps({"batch": 1, "expires": int(max(seconds, 0.1) * 1e9)}).encode()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{streams.WORK_STREAM}.{self._durable}"
        client = self._connection.client()
        try:
            # A delivered item carries its own subject, which the shared inbox of new-style requests cannot match.
            with heeding_cancellation():
                msg = await client.request(subject, body, timeout=seconds + 1.0, old_style=True)
        except nats.errors.NoRespondersError as error:
            raise _ConsumerGone("no consumer answers") from error
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
            await self._connection.publish(msg.reply, b"+TERM")
            return None
        return WorkMessage(item, msg.reply, self._connection)


class _ConsumerGone(Exception):
    pass
