"""The loss of a model on rows: the mean negative log-likelihood of their trained tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from engine.data.spans import IGNORED
from engine.model.hidden_states import hidden_states
from engine.perplexity import perplexity

Row = Mapping[str, Sequence[int]]
"""Columns `input_ids` and `labels` of equal length; labels are -100 for tokens that are not scored."""

_TOKENS_PER_BATCH = 2048
"""Maximum tokens of a batch, padding included. Beside the model, scoring needs the memory of the logits of the trained
ones: at most 400 MB in float32 for a vocabulary of 49,000."""


@dataclass(frozen=True)
class Score:
    """The mean loss over all trained tokens of all rows; every token has the same weight."""

    loss: float
    """Nats per trained token."""
    num_examples: int
    num_trained_tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss); infinity where that exceeds a float."""
        return perplexity(self.loss)


def score(
    model: Any,
    rows: Sequence[Row],
    on_progress: Callable[[float], None],
    on_row: Callable[[int, float, int], None] = lambda index, loss_sum, num_trained: None,
) -> Score:
    """Scores `rows` in the model's own number format, the loss in float32.

    After every batch `on_progress` receives the share of tokens scored so far, and `on_row`, for each of its rows, the
    index of the row, the sum of its losses, and its number of trained tokens. Rows without trained tokens are not
    counted. Raises ValueError if no row has any.
    """
    model.eval()
    target = next(model.parameters()).device
    total, trained, examples, seen = 0.0, 0, 0, 0
    size = sum(len(row["input_ids"]) for row in rows)
    for indices in _batches(rows):
        batch = [rows[index] for index in indices]
        ids, mask, labels = (tensor.to(target) for tensor in _padded(batch))
        predicted = labels[:, 1:] != IGNORED
        # The head of a small model is a fifth of its operations, and rows begin with long prompts.
        with torch.inference_mode(), hidden_states(model, predicted, only=True):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
            nll = functional.cross_entropy(logits.float(), labels[:, 1:][predicted], reduction="none")
            sums = torch.zeros(len(batch), dtype=torch.float64, device=target)
            sums.index_add_(0, predicted.nonzero()[:, 0], nll.double())
        for index, loss_sum, count in zip(indices, sums.tolist(), predicted.sum(dim=1).tolist(), strict=True):
            total += loss_sum
            trained += count
            examples += count > 0
            on_row(index, loss_sum, count)
        seen += sum(len(row["input_ids"]) for row in batch)
        on_progress(seen / size)
    if trained == 0:
        raise ValueError("no row has a trained token")
    return Score(total / trained, examples, trained)


def _batches(rows: Sequence[Row]) -> Iterator[list[int]]:
    """Yields the indices of rows of similar length, the longest first: a batch that exceeds memory fails at once."""
    lengths = [len(row["input_ids"]) for row in rows]
    batch: list[int] = []
    for index in sorted(range(len(rows)), key=lambda index: -lengths[index]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > _TOKENS_PER_BATCH:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _padded(batch: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns input_ids, attention_mask and labels, int64 [rows, longest row], padded on the right."""
    width = len(batch[0]["input_ids"])
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for index, row in enumerate(batch):
        length = len(row["input_ids"])
        ids[index, :length] = torch.as_tensor(row["input_ids"])
        mask[index, :length] = 1
        labels[index, :length] = torch.as_tensor(row["labels"])
    return ids, mask, labels
