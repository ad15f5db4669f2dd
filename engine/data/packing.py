"""How many sequences the trainer will make of a set of rows when it packs them."""

import bisect
from collections.abc import Iterable, Sequence

_TRL_MAP_BATCH = 1000
"""TRL packs within batches of so many rows, never across them."""


class PackCount:
    """Counts while the rows come, and remembers no more than a batch of them."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._batch: list[int] = []
        self._full = 0

    def add(self, lengths: Iterable[int]) -> None:
        """Takes in rows of these lengths, in tokens, behind those that it knows."""
        self._batch.extend(lengths)
        while len(self._batch) >= _TRL_MAP_BATCH:
            self._full += _best_fit(self._batch[:_TRL_MAP_BATCH], self._max_length)
            del self._batch[:_TRL_MAP_BATCH]

    @property
    def num_sequences(self) -> int:
        """Sequences of at most `max_length` tokens that best-fit decreasing makes of the rows so far."""
        return self._full + _best_fit(self._batch, self._max_length)


def _best_fit(lengths: Sequence[int], max_length: int) -> int:
    room: list[int] = []
    for length in sorted((min(length, max_length) for length in lengths), reverse=True):
        tightest = bisect.bisect_left(room, length)
        left = room.pop(tightest) if tightest < len(room) else max_length
        bisect.insort(room, left - length)
    return len(room)
