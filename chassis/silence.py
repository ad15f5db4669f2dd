"""How long nothing was heard of somebody, by a clock that stands still while this process itself is held up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

_NAP_SECONDS: Final = 1.0
_LATE_SECONDS: Final = 1.0


class Silence:
    """Begins now. `heard` may be called from any thread."""

    def __init__(self) -> None:
        self._heard = time.monotonic()

    def heard(self) -> None:
        """A sign of life: it begins anew."""
        self._heard = time.monotonic()

    async def lasts(self, limit: Callable[[], float]) -> float:
        """Returns the limit, in seconds, once it has lasted that long. The limit may change meanwhile."""
        while (left := self._heard + limit() - time.monotonic()) > 0:
            nap = min(left, _NAP_SECONDS)
            before = time.monotonic()
            await asyncio.sleep(nap)
            if time.monotonic() > before + nap + _LATE_SECONDS:
                # This process was stopped or starved; what was said meanwhile is still on its way.
                self.heard()
        return limit()
