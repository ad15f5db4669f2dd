"""How many sequences the trainer will make of a set of rows when it packs them."""

import bisect
from collections.abc import Sequence

_TRL_MAP_BATCH = 1000
"""TRL packs within batches of so many rows, never across them."""


def count_packed(lengths: Sequence[int], max_length: int) -> int:
    """Sequences of at most `max_length` tokens that best-fit decreasing makes of rows of these lengths."""
    batches = (lengths[start : start + _TRL_MAP_BATCH] for start in range(0, len(lengths), _TRL_MAP_BATCH))
    return sum(_best_fit(batch, max_length) for batch in batches)


def _best_fit(lengths: Sequence[int], max_length: int) -> int:
    room: list[int] = []
    for length in sorted((min(length, max_length) for length in lengths), reverse=True):
        tightest = bisect.bisect_left(room, length)
        left = room.pop(tightest) if tightest < len(room) else max_length
        bisect.insort(room, left - length)
    return len(room)
