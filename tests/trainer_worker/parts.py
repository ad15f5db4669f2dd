"""What the tests of the trainer's child share beside fixtures."""

import random
from typing import Any

from google.protobuf.message import Message

from chassis.pipe import EventSink


class Recorder(EventSink):
    """A sink that keeps what it is given, and asks for a pause or a cancel after a given step."""

    def __init__(self, request: str = "", after_step: int = 0) -> None:
        super().__init__(None, None)
        self.payloads: list[Any] = []
        self.ticks = 0
        self._request, self._after_step = request, after_step

    def emit(self, payload: Message, severity: Any = None) -> None:
        self.payloads.append(payload)

    def tick(self) -> None:
        self.ticks += 1

    def requested(self) -> str:
        # The n-th step has been made when the sink was ticked n times: one micro-batch a step, no evaluation before.
        return self._request if self._request and self.ticks >= self._after_step else ""

    def of(self, kind: type[Message]) -> list[Any]:
        return [payload for payload in self.payloads if isinstance(payload, kind)]


def rows(count: int, seed: int, longest: int = 24) -> list[dict[str, list[int]]]:
    """Rows of uneven length whose answers count upwards, so that there is something to learn."""
    rng = random.Random(seed)  # noqa: S311
    made = []
    for _ in range(count):
        start, length = rng.randrange(10, 200), rng.randrange(8, longest)
        ids = [(start + i) % 300 + 5 for i in range(length)]
        given = rng.randrange(2, length - 2)
        made.append({"input_ids": ids, "labels": [-100] * given + ids[given:]})
    return made
