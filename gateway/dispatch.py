"""READY attempts are offered to workers. The row is the dispatch; the message is a hint that may be lost or doubled."""

import asyncio
import logging
import time

from sqlalchemy.exc import DBAPIError
from sqlmodel import select

from chassis.bus import Bus, BusUnavailable
from finetuneflow.v1.work_pb2 import WorkItem
from gateway.database import Database
from gateway.lifecycle import MAX_BACKOFF_SECONDS, SERVICES
from gateway.outages import DatabaseUnavailable
from gateway.tables import Attempt, now

log = logging.getLogger(__name__)

_TICK_SECONDS = 1.0
_REPUBLISH_SECONDS = 30.0


def is_due(attempt: Attempt) -> bool:
    """Whether its back-off is over. One that lies further ahead than any back-off was written before the clock was set
    back: nobody waits for hours because of that."""
    left = attempt.not_before - now()
    return not 0 < left <= MAX_BACKOFF_SECONDS * 1_000_000


class Dispatcher:
    """Publishes a work item per READY attempt: at once, again every 30 s, and anew when the stream was lost."""

    def __init__(self, database: Database, bus: Bus) -> None:
        self._database = database
        self._bus = bus
        self._published: dict[tuple[str, str, int], float] = {}

    async def offer(self, attempt: Attempt) -> None:
        """Publishes an attempt that is due. A failure is only logged: the row stays READY, `run` tries again."""
        if not is_due(attempt):
            return
        item = WorkItem(job_id=attempt.job_id, stage=attempt.stage, attempt=attempt.attempt)
        # Training is the stage that pools scale; the others have one pool each.
        pool = attempt.pool if attempt.stage == "STAGE_TRAINING" else "default"
        try:
            await self._bus.publish_work(SERVICES[attempt.stage], pool, item)
        except BusUnavailable as error:
            log.warning("work item of job %s waits for the broker: %s", attempt.job_id, error)
            return
        self._published[attempt.job_id, attempt.stage, attempt.attempt] = time.monotonic()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                if self._bus.connected and await self._bus.ensure_streams():
                    self._published.clear()
            except BusUnavailable as error:
                log.warning("the work stream can't be checked: %s", error)
            try:
                await self._offer_due()
            except (DBAPIError, DatabaseUnavailable) as error:
                log.warning("READY attempts can't be read: %s", error)
            await asyncio.sleep(_TICK_SECONDS)

    async def _offer_due(self) -> None:
        async with self._database.read() as session:
            attempts = (await session.exec(select(Attempt).where(Attempt.state == "READY"))).all()
        waiting = {(a.job_id, a.stage, a.attempt): a for a in attempts if is_due(a)}
        self._published = {key: when for key, when in self._published.items() if key in waiting}
        for key, attempt in waiting.items():
            if time.monotonic() - self._published.get(key, -_REPUBLISH_SECONDS) >= _REPUBLISH_SECONDS:
                await self.offer(attempt)
