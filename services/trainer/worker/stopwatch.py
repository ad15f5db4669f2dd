"""Measures the parts of training steps without waiting for the device."""

import time
from collections import deque
from typing import Any, Final, Literal

import torch

from engine.model.load import Device

Part = Literal["data", "forward", "backward", "optimizer"]
PARTS: Final[tuple[Part, ...]] = ("data", "forward", "backward", "optimizer")


class Stopwatch:
    """Adds up the seconds of each part.

    A GPU works behind the host, which would measure when work is queued, not how long it takes. There, moments are
    events in the device's queue, and their times are read once the host has waited for the device for another reason.
    """

    def __init__(self, on: Device) -> None:
        self._on_gpu = on == "cuda"
        self._part: Part | None = None
        self._since: Any = None
        self._unread: deque[tuple[Part, Any, Any]] = deque()
        self._seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)

    def enter(self, part: Part | None) -> None:
        """Ends the current part and begins `part`; None: what follows is not counted."""
        now = self._now()
        if self._part is not None:
            self._unread.append((self._part, self._since, now))
        self._part, self._since = part, now

    def read(self) -> None:
        """Adds up the parts that the device has completed. Cheap; call it after the host has waited for the device."""
        while self._unread and (not self._on_gpu or self._unread[0][2].query()):
            part, begin, end = self._unread.popleft()
            self._seconds[part] += begin.elapsed_time(end) / 1000 if self._on_gpu else end - begin

    def take(self) -> dict[Part, float]:
        """Returns the seconds of each part since the last call."""
        self.read()
        taken, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return taken

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        moment = torch.cuda.Event(enable_timing=True)
        moment.record()
        return moment
