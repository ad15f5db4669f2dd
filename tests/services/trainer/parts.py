"""Classes and functions that the tests of the trainer's child share, beside fixtures."""

import random
from typing import Any

from google.protobuf.message import Message

from chassis.child.pipe import EventSink
from finetuneflow.v1.event_pb2 import Log


class Recorder(EventSink):
    """A sink that records what is emitted, and requests a pause or a cancel after the log of a given step."""

    def __init__(self, request: str = "", after_step: int = 0) -> None:
        super().__init__(None, None)
        self.payloads: list[Any] = []
        self._request, self._after_step = request, after_step
        self._step = 0

    def emit(self, payload: Message, severity: Any = None) -> None:
        self.payloads.append(payload)
        if isinstance(payload, Log):
            self._step = payload.step

    def requested(self) -> str:
        return self._request if self._step >= self._after_step else ""

    def of(self, kind: type[Message]) -> list[Any]:
        return [payload for payload in self.payloads if isinstance(payload, kind)]


def rows(count: int, seed: int, shortest: int = 8, longest: int = 24) -> list[dict[str, list[int]]]:
    """Rows of uneven length whose answers count upwards, so that the loss can fall."""
    rng = random.Random(seed)  # noqa: S311
    made = []
    for _ in range(count):
        start, length = rng.randrange(10, 200), rng.randrange(shortest, longest)
        ids = [(start + i) % 300 + 5 for i in range(length)]
        given = rng.randrange(2, length - 2)
        made.append({"input_ids": ids, "labels": [-100] * given + ids[given:]})
    return made
