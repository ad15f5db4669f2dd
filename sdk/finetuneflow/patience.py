"""Back-off between repeated attempts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable


class Patience:
    """Back-off from 50 ms to 1 s with jitter. It ends `seconds` after the first of consecutive failures.

    The first `at_once` failures cause no delay, because another gateway can be asked.
    """

    def __init__(self, seconds: float, *, at_once: int = 0, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._at_once = at_once
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Restarts the back-off after a success."""
        self._give_up_at: float | None = None
        self._delay = 0.05
        self._others = self._at_once

    def next_delay(self) -> float | None:
        """Returns the seconds to wait before the next attempt, or None to give up."""
        if self._others:
            self._others -= 1
            return 0.0
        now = self._clock()
        if self._give_up_at is None:
            self._give_up_at = now + self._seconds
        if now >= self._give_up_at:
            return None
        delay = self._delay * random.uniform(0.75, 1.25)  # noqa: S311 - jitter, not a secret
        self._delay = min(self._delay * 2, 1.0)
        return min(delay, self._give_up_at - now)
