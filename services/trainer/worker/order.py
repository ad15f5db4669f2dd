"""In which order rows are trained on."""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class GroupedByLength(Sampler[int]):
    """Rows of similar length side by side, in an order that hangs on seed and epoch alone.

    The Trainer's own draws from torch's global random state, which an epoch's first steps have moved on: resumed in
    the middle of an epoch, it would make up another order, train some rows twice and leave others out.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._lengths, self._rows_per_step, self._seed = lengths, rows_per_step, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The Trainer tells it before each epoch, and the epoch it goes on in when it is resumed."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._rows_per_step, generator=generator))


def lengths(rows: Dataset) -> list[int]:
    """Tokens of each row."""
    ids = rows.with_format("arrow")[:]["input_ids"]
    return [length for chunk in ids.chunks for length in chunk.value_lengths().to_pylist()]
