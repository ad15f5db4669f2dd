"""Order of the rows in training."""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from engine.config.curriculum import Curriculum
from engine.data.spans import IGNORED
from services.trainer.worker.ranks import Ranks


class GroupedByLength(Sampler[int]):
    """Groups rows of similar length, in an order that depends on seed and epoch only.

    The Trainer's own sampler draws from torch's global random state, which the first steps of an epoch change: resumed
    in the middle of an epoch, it would produce another order, train some rows twice and skip others.
    """

    def __init__(self, lengths: Sequence[int], rows_per_step: int, seed: int) -> None:
        self._lengths, self._rows_per_step, self._seed = lengths, rows_per_step, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. The Trainer calls it before each epoch, and when it resumes in one."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._rows_per_step, generator=generator))


class PhaseByPhase(Sampler[int]):
    """Presents a whole curriculum as one epoch of the Trainer.

    The rows of a step depend on its number and the seed only, so that a resumed attempt finds its position by counting.
    """

    def __init__(self, curriculum: Curriculum, lengths: Sequence[int] | None, seed: int) -> None:
        """With `lengths`, rows of similar length are grouped within each epoch of a phase."""
        self._curriculum, self._lengths, self._seed = curriculum, lengths, seed

    def __len__(self) -> int:
        return sum(self._curriculum.taken)

    def __iter__(self) -> Iterator[int]:
        first = 0
        for phase, (rows, taken) in enumerate(zip(self._curriculum.sequences, self._curriculum.taken, strict=True)):
            for epoch in range(math.ceil(taken / rows)):
                order = self._order(first, rows, f"{self._seed} {phase} {epoch}")
                yield from (first + index for index in order[: taken - epoch * rows])
            first += rows

    def _order(self, first: int, rows: int, drawn_by: str) -> list[int]:
        seed = int.from_bytes(hashlib.blake2b(drawn_by.encode(), digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(seed)
        if self._lengths is None:
            order: list[int] = torch.randperm(rows, generator=generator).tolist()
            return order
        lengths = self._lengths[first : first + rows]
        grouped: list[int] = get_length_grouped_indices(lengths, self._curriculum.per_step, generator=generator)
        return grouped


class Padded(Sampler[int]):
    """Completes an epoch with a row without trained tokens, so that every rank has equally many full batches.

    accelerate would repeat rows of the beginning instead, which would count twice.
    """

    def __init__(self, order: Sampler[int] | Sequence[int], blank: int, multiple: int) -> None:
        """`blank` is the index of that row; the length becomes a multiple of `multiple`."""
        self.order, self.blank, self._multiple = order, blank, multiple

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch. The Trainer calls it before each epoch, and when it resumes in one."""
        if hasattr(self.order, "set_epoch"):
            self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.order) / self._multiple) * self._multiple  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        missing = len(self) - len(self.order)  # type: ignore[arg-type]
        return chain(self.order, repeat(self.blank, missing))


def with_blank(rows: Dataset) -> Dataset:
    """Appends the row of `Padded`: one token, which predicts nothing."""
    blank = {"input_ids": [[rows[0]["input_ids"][0]]], "labels": [[IGNORED]], "seq_lengths": [[1]]}
    columns = {name: blank[name] for name in rows.column_names}
    return concatenate_datasets([rows, Dataset.from_dict(columns, rows.features)])


def rows_of_step(dataloader: Any, accumulation: int, ranks: Ranks, step: int, micro_batch: int | None) -> list[int]:
    """Returns the indices of the rows of a step, counted from 1, or of one of this rank's micro-batches, from 0.

    Draws the order of the epoch again, as the data loader did, so that training steps need not record their rows.
    """
    per_epoch = len(dataloader)
    epoch, in_epoch = divmod(step - 1, math.ceil(per_epoch / accumulation))
    first = in_epoch * accumulation
    last = min(first + accumulation, per_epoch)
    # Batch b of a rank is batch b * world_size + rank of the order.
    first, last = first * ranks.world_size, last * ranks.world_size
    if micro_batch is not None:
        first += micro_batch * ranks.world_size + ranks.rank
        last = first + 1
    batches = dataloader.batch_sampler if ranks.world_size == 1 else dataloader.batch_sampler.batch_sampler
    batches = copy.copy(batches)
    batches.sampler = drawn_again(batches.sampler)
    if hasattr(batches.sampler, "set_epoch"):
        batches.sampler.set_epoch(epoch)
    blank = batches.sampler.blank if isinstance(batches.sampler, Padded) else None
    return [index for batch in islice(batches, first, last) for index in batch if index != blank]


def drawn_again(sampler: Any) -> Any:
    """Returns a copy with a generator of its own: the data loader may be in the middle of an epoch with this one."""
    sampler = copy.copy(sampler)
    if isinstance(sampler, Padded):
        sampler.order = drawn_again(sampler.order)
    if getattr(sampler, "generator", None) is not None:
        sampler.generator = None
    return sampler


def lengths(rows: Dataset) -> list[int]:
    """Returns the number of tokens of each row."""
    ids = rows.with_format("arrow")[:]["input_ids"]
    return [length for chunk in ids.chunks for length in chunk.value_lengths().to_pylist()]
