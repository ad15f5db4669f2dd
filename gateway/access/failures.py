"""Limits calls with wrong credentials, by the address that they come from."""

from __future__ import annotations

import time
from typing import Final

WINDOW_SECONDS: Final = 60.0
_MAX_ADDRESSES: Final = 10_000


class FailureLimit:
    """Counts failures by address in windows of a minute; `most` of them are logged.

    Bounded: a flood from many addresses forgets the oldest.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._windows: dict[str, tuple[float, int]] = {}
        """Address → (end of its window, failures in it)."""

    def reached(self, address: str) -> bool:
        """Returns True if the address has used up its failures."""
        end, count = self._windows.get(address, (0.0, 0))
        return count >= self._most and time.monotonic() < end

    def add(self, address: str) -> None:
        """Counts a failure."""
        clock = time.monotonic()
        end, count = self._windows.pop(address, (0.0, 0))
        if clock >= end:
            end, count = clock + WINDOW_SECONDS, 0
        self._windows[address] = (end, count + 1)
        if len(self._windows) > _MAX_ADDRESSES:
            self._windows.pop(next(iter(self._windows)))
