"""Offers READY attempts to workers. The row is the dispatch; the message is a hint that may be lost or doubled."""

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from chassis.bus.event_bus import Bus, BusUnavailable
from finetuneflow.v1.work_pb2 import WorkItem
from gateway.sql.database import Database
from gateway.sql.database_errors import DatabaseUnavailable
from gateway.sql.tables import Attempt, now
from gateway.work.kinds import queue_of

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_REPUBLISH_SECONDS = 30.0
_AT_ONCE = 100
"""Publications under way: one that the broker refuses holds up none of the others."""

_Key: TypeAlias = tuple[str, str, int]


@dataclass
class _Offer:
    """A READY attempt and its next publication."""

    item: WorkItem
    service: str
    pool: str
    due: float
    """When it is published next, on this process's monotonic clock."""
    published: bool = False
    """True once it is queued; `due` then only covers the case that the broker lost it."""


class Dispatcher:
    """Publishes a work item per READY attempt: when it is due, again every 30 s, and anew when the broker may have
    lost it."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._offers: dict[_Key, _Offer] = {}
        self._changed = asyncio.Event()
        self._away = False
        self._publications: set[asyncio.Task[None]] = set()

    async def offer(self, attempt: Attempt) -> None:
        """Publishes an attempt when it is due. The caller does not wait for the broker."""
        offer = self._offer_for(attempt)
        if offer.due <= time.monotonic():
            publication = asyncio.create_task(self._publish(offer))
            self._publications.add(publication)
            publication.add_done_callback(self._publications.discard)
        else:
            self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        look = 0.0
        while True:
            if time.monotonic() >= look:
                look = time.monotonic() + _TICK_SECONDS
                await self._refresh()
            if self._bus.connected:
                await self._publish_due()
            wake = min([look, *(offer.due for offer in self._offers.values() if not offer.published)])
            self._changed.clear()
            try:
                async with asyncio.timeout(max(wake - time.monotonic(), 0.01)):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _refresh(self) -> None:
        """Finds READY attempts in SQL, and publishes again what the broker has lost."""
        before = set(self._offers)
        ready = Attempt.state == "READY"
        try:
            async with self._database.read() as session:
                keys = set(
                    (await session.exec(select(Attempt.work_id, Attempt.stage, Attempt.attempt).where(ready))).all()
                )
                if keys - before:
                    for attempt in (await session.exec(select(Attempt).where(ready))).all():
                        self._offer_for(attempt)
        except (DBAPIError, DatabaseUnavailable) as error:
            log.warning("READY attempts can't be read: %s", error)
            return
        # But for those that were opened while the queries ran.
        for key in before - keys:
            del self._offers[key]
        if not self._bus.connected:
            return
        try:
            lost = await self._bus.work_lost()
        except BusUnavailable as error:
            self._note_outage(error)
            return
        if lost:
            for offer in self._offers.values():
                if offer.published:
                    offer.published, offer.due = False, time.monotonic()

    async def _publish_due(self) -> None:
        due = [offer for offer in self._offers.values() if offer.due <= time.monotonic()]
        slots = asyncio.Semaphore(_AT_ONCE)

        async def publish(offer: _Offer) -> None:
            async with slots:
                await self._publish(offer)

        await asyncio.gather(*(publish(offer) for offer in due))

    async def _publish(self, offer: _Offer) -> None:
        # Before the attempt: two who publish at once would do it twice.
        offer.due = time.monotonic() + _REPUBLISH_SECONDS
        try:
            await self._bus.publish_work(offer.service, offer.pool, offer.item)
        except BusUnavailable as error:
            self._note_outage(error)
            offer.due = time.monotonic() + _TICK_SECONDS
        else:
            self._away = False
            offer.published = True

    def _offer_for(self, attempt: Attempt) -> _Offer:
        """Returns the offer of an attempt; a new one is due after the rest of its back-off."""
        key = _key(attempt)
        if key not in self._offers:
            # Of two readings of the wall clock, the later may be of a clock set back: nobody waits longer for that.
            left = min(attempt.not_before - now(), attempt.not_before - attempt.create_time)
            service, pool = queue_of(attempt.stage, attempt.pool)
            self._offers[key] = _Offer(
                item=WorkItem(job_id=attempt.work_id, stage=attempt.stage, attempt=attempt.attempt),
                service=service,
                pool=pool,
                due=time.monotonic() + max(left, 0) / 1e6,
            )
        return self._offers[key]

    def _note_outage(self, error: BusUnavailable) -> None:
        if not self._away:
            log.warning("work items wait for the broker: %s", error)
        self._away = True


def _key(attempt: Attempt) -> _Key:
    return attempt.work_id, attempt.stage, attempt.attempt
