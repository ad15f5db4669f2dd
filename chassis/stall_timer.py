"""A timer that fires when nothing resets it, on a clock that ignores the time this process was held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_NAP_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 1.0


class StallTimer:
    """Measures the time since the last `reset`, which any thread may call. The timer starts when it is created."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def reset(self) -> None:
        """Starts the interval again."""
        self._started = time.monotonic()

    async def wait(self, limit: Callable[[], float]) -> float:
        """Returns the limit in seconds once that long has passed without a reset. The limit may change meanwhile."""
        while (left := self._started + limit() - time.monotonic()) > 0:
            nap = min(left, _NAP_SECONDS)
            before = time.monotonic()
            await asyncio.sleep(nap)
            if time.monotonic() > before + nap + _LATE_SECONDS:
                # This process was stopped or starved: signals sent meanwhile have not been read yet.
                self.reset()
        return limit()
