"""Counts the sequences into which the trainer packs a set of rows."""

import bisect
from collections.abc import Iterable, Sequence

_TRL_MAP_BATCH = 1000
"""Rows per batch in which TRL packs; it never packs across batches."""


class PackCount:
    """Counts packed sequences incrementally; holds the lengths of at most one batch of rows."""

    def __init__(self, max_length: int) -> None:
        self._max_length = max_length
        self._batch: list[int] = []
        self._full = 0

    def add(self, lengths: Iterable[int]) -> None:
        """Appends rows with these lengths, in tokens."""
        self._batch.extend(lengths)
        while len(self._batch) >= _TRL_MAP_BATCH:
            self._full += _best_fit(self._batch[:_TRL_MAP_BATCH], self._max_length)
            del self._batch[:_TRL_MAP_BATCH]

    @property
    def num_sequences(self) -> int:
        """Number of sequences of at most `max_length` tokens into which best-fit decreasing packs the rows so far."""
        return self._full + _best_fit(self._batch, self._max_length)


def _best_fit(lengths: Sequence[int], max_length: int) -> int:
    room: list[int] = []
    for length in sorted((min(length, max_length) for length in lengths), reverse=True):
        tightest = bisect.bisect_left(room, length)
        left = room.pop(tightest) if tightest < len(room) else max_length
        bisect.insort(room, left - length)
    return len(room)
