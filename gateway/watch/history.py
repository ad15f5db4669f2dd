"""The events of watched work in SQL, read once for all watchers that ask for the same page."""

import asyncio
from collections import OrderedDict

from sqlalchemy import or_
from sqlmodel import col, select

from gateway.sql.database import Database
from gateway.sql.tables import Work, WorkEvent
from gateway.watch.frames import TERMINAL_KIND, frame_of_row
from gateway.watch.pages import PAGE_BYTES, PAGE_EVENTS, EventFilter, Page, first_bytes
from gateway.work.kinds import Kind

_CACHED_PAGES = 32
"""Pages cached for the next watcher: watchers that connect together, as after a restart, read history together."""


class History:
    """Reads positions and pages of events from SQL."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pages: OrderedDict[tuple[str, int, EventFilter], asyncio.Task[Page | None]] = OrderedDict()

    async def position(self, work_id: str, tenant: str, kind: Kind) -> tuple[str, int] | None:
        """Returns (state, last sequence), or None if there is no such work of that tenant and kind."""
        async with self._database.read() as session:
            query = select(Work.state, Work.last_sequence).where(
                Work.id == work_id, Work.tenant == tenant, Work.kind == kind.name
            )
            return (await session.exec(query)).one_or_none()

    async def last_sequences(self, work_ids: list[str]) -> dict[str, int]:
        """Returns the last sequence of each of them that exists, with one query."""
        async with self._database.read() as session:
            query = select(Work.id, Work.last_sequence).where(col(Work.id).in_(work_ids))
            return dict((await session.exec(query)).all())

    async def page(self, work_id: str, position: int, selected: EventFilter, newest: int) -> Page | None:
        """Returns the page after `position`, with events up to the sequence `newest`, or None if the work was deleted.

        Concurrent callers with the same arguments share one query: the events before `newest` never change.
        """
        key = (work_id, position, selected)
        reading = self._pages.get(key)
        if reading is None:
            reading = self._pages[key] = asyncio.create_task(self._read(work_id, position, selected, newest))
            if len(self._pages) > _CACHED_PAGES:
                self._pages.popitem(last=False)
        self._pages.move_to_end(key)
        try:
            # Other watchers may wait for the same reading when this one is cancelled.
            page = await asyncio.shield(reading)
        except BaseException:
            if reading.done():
                self._pages.pop(key, None)
            task = asyncio.current_task()
            if not reading.cancelled() or (task and task.cancelling()):
                raise
            # The reading was cancelled but this watcher was not: its stream must not end because of it.
            page = await self._read(work_id, position, selected, newest)
        if page is None or page.through <= position:
            # There was nothing yet. A cached empty page would be the answer for ever, to a watcher that asks without
            # a pause.
            self._pages.pop(key, None)
        return page

    async def _read(self, work_id: str, position: int, selected: EventFilter, newest: int) -> Page | None:
        events = select(WorkEvent.sequence, WorkEvent.kind, WorkEvent.severity, WorkEvent.event).where(
            WorkEvent.work_id == work_id, WorkEvent.sequence > position, WorkEvent.sequence <= newest
        )
        # The event that ends the stream is read whatever the filter: without it the stream would not end.
        if selected.kinds:
            events = events.where(col(WorkEvent.kind).in_([*selected.kinds, TERMINAL_KIND]))
        if selected.min_severity:
            severe = col(WorkEvent.severity) >= selected.min_severity
            events = events.where(or_(severe, col(WorkEvent.kind) == TERMINAL_KIND))
        async with self._database.read() as session:
            rows = (await session.exec(events.order_by(col(WorkEvent.sequence)).limit(PAGE_EVENTS))).all()
            if not rows and (await session.exec(select(Work.id).where(Work.id == work_id))).one_or_none() is None:
                return None
        frames = first_bytes((frame_of_row(*row) for row in rows), PAGE_BYTES)
        complete = len(frames) == len(rows) < PAGE_EVENTS
        return Page.of(frames, selected, newest if complete else frames[-1].sequence)
