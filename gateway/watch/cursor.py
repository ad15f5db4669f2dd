"""The position of one watcher in a job's events, and its waiting for the next one."""

import asyncio


class Cursor:
    """The position of one watcher, and the time of its next heartbeat.

    A new watcher starts overdue, so it receives an empty response immediately when there is no event to send.
    """

    def __init__(self, position: int, heartbeat_seconds: float) -> None:
        self.position = position
        """Sequence of the last event this watcher has passed, sent or filtered out."""
        self._heartbeat_seconds = heartbeat_seconds
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] | None = None
        self._due = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def overdue(self) -> bool:
        """The heartbeat interval has passed since the last `rest`."""
        return self._loop.time() >= self._due

    def rest(self) -> None:
        """Starts the heartbeat interval again."""
        self._due = self._loop.time() + self._heartbeat_seconds

    async def wait(self) -> None:
        """Waits for `wake`, at the latest until the cursor is overdue."""
        self._news = self._loop.create_future()
        # One timer serves many waits: creating and cancelling one for each wait costs more than the wait itself.
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._expire)
        try:
            await self._news
        finally:
            self._news = None

    def wake(self) -> None:
        """Ends the current wait, if there is one."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def close(self) -> None:
        """Cancels the timer. The cursor cannot be used afterwards."""
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self) -> None:
        self._timer = None
        if self.overdue:
            self.wake()
        elif self._news is not None:
            self._timer = self._loop.call_at(self._due, self._expire)
