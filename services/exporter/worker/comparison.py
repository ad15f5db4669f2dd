"""Compares the next-token probabilities of two models on the same rows, one model in memory at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy
import torch
from transformers import PreTrainedTokenizerFast

from engine.data.shards import read_shards
from engine.evaluation.general_set import general_rows
from engine.model.hidden_states import hidden_states
from finetuneflow.v1.stage_result_pb2 import ExportComparison
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.rendering import general_conversations

SENTENCE: Final = "The quick brown fox jumps over the lazy dog."
_ROWS: Final = 64
_TOKENS: Final = 512
"""Number of tokens of a row that are read: weights that differ show it at once."""
_LOGITS_PER_ROW: Final = 2**22
"""Number of logits of a row that are compared: with 64 rows, a file of at most 1 GiB."""


@dataclass(frozen=True)
class ComparedRows:
    """Rows that both models read."""

    source: str
    """`held_out`, `prompts`, `general` or `sentence`."""
    rows: Sequence[Sequence[int]]
    """Token ids, at least two in each row."""


def compared_rows(child_input: ExportInput, tokenizer_dir: Path) -> ComparedRows:
    """Returns held-out rows of the job, the prompts of its evaluation if it has none, otherwise one sentence.
    For a base model general questions with their answers, which every installation has."""
    if child_input.held_out is not None:
        held_out = (list(row["input_ids"][:_TOKENS]) for row in read_shards(child_input.held_out))
        if rows := list(islice((row for row in held_out if len(row) > 1), _ROWS)):
            return ComparedRows("held_out", rows)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    if child_input.of_base:
        general = [each.ids[:_TOKENS] for each in general_conversations(child_input)]
        return ComparedRows("general", general or [_text_ids(tokenizer, row) for row in islice(general_rows(), _ROWS)])
    prompts = (_prompt_ids(tokenizer, prompt)[:_TOKENS] for prompt in child_input.config.evaluation.prompts)
    if rows := list(islice((row for row in prompts if len(row) > 1), _ROWS)):
        return ComparedRows("prompts", rows)
    return ComparedRows("sentence", [list(tokenizer(SENTENCE)["input_ids"])])


def _text_ids(tokenizer: Any, row: Mapping[str, str]) -> list[int]:
    return list(tokenizer(f"{row['question']} {row['answer']}")["input_ids"])[:_TOKENS]


def _prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def logits(model: Any, rows: Iterable[Sequence[int]], on_row: Callable[[], None]) -> Iterator[torch.Tensor]:
    """Yields for each row the logits at positions spread evenly over it, float32 [positions, vocabulary].

    Rows are read one at a time: padding would change the last bits.
    """
    model.eval()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    for row in rows:
        on_row()
        length = len(row) - 1
        count = min(length, max(1, _LOGITS_PER_ROW // vocabulary))
        predicted = torch.zeros(1, length, dtype=torch.bool)
        predicted[0, torch.linspace(0, length - 1, count).long()] = True
        with torch.inference_mode(), hidden_states(model, predicted, only=True):
            found = model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()
        yield found


class LogitsFile:
    """Logits of a model's rows in a file, so that the model need not stay in memory."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._shapes: list[torch.Size] = []

    def write(self, logits_of_rows: Iterable[torch.Tensor]) -> None:
        """Writes the logits of all rows."""
        with self._file.open("wb") as sink:
            for row in logits_of_rows:
                self._shapes.append(row.shape)
                sink.write(row.contiguous().numpy().data)

    def read(self) -> Iterator[torch.Tensor]:
        """Yields the logits of each row."""
        with self._file.open("rb") as source:
            for shape in self._shapes:
                yield torch.from_numpy(numpy.fromfile(source, numpy.float32, shape.numel())).view(shape)


@dataclass(frozen=True)
class Comparison:
    """Distance of a model's next-token probabilities from those of the checkpoint."""

    num_rows: int
    num_positions: int
    mean_kl: float
    """Kullback-Leibler divergence from the checkpoint's probabilities, mean over the positions, in nats. All figures
    are NaN if the model computes values that are not finite."""
    p99_kl: float
    same_next_token: float
    """Share of positions with the same most probable next token."""
    max_difference: float
    """Largest absolute difference of two logits."""

    @classmethod
    def of(cls, checkpoint: Iterable[torch.Tensor], exported: Iterable[torch.Tensor]) -> "Comparison":
        """Compares the logits of the same rows, [positions, vocabulary] each."""
        divergences, same, largest, num_rows = [], 0, [], 0
        for theirs, ours in zip(checkpoint, exported, strict=True):
            # In float32 the rounding of the sum is larger than the divergence of equal models.
            expected, found = theirs.double().log_softmax(-1), ours.double().log_softmax(-1)
            divergences.append((expected.exp() * (expected - found)).sum(-1))
            same += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
            largest.append((theirs - ours).abs().max())
            num_rows += 1
        divergence = torch.cat(divergences).clamp(min=0)
        return cls(
            num_rows=num_rows,
            num_positions=len(divergence),
            mean_kl=float(divergence.mean()),
            p99_kl=float(divergence.quantile(0.99)),
            same_next_token=same / len(divergence),
            max_difference=float(torch.stack(largest).max()),
        )


@dataclass(frozen=True)
class Bounds:
    """Upper bounds of a comparison; None: none."""

    mean_kl: float | None = None
    max_difference: float | None = None

    def hold(self, found: Comparison) -> bool:
        """Returns False if a bound is exceeded, or a figure is not a number."""
        return (self.mean_kl is None or found.mean_kl <= self.mean_kl) and (
            self.max_difference is None or found.max_difference <= self.max_difference
        )


def comparison_message(found: Comparison, bounds: Bounds, rows: str, checkpoint_dtype: str) -> ExportComparison:
    """Returns a comparison as the result of the export has it."""
    return ExportComparison(
        rows=rows,
        num_rows=found.num_rows,
        num_positions=found.num_positions,
        mean_kl=found.mean_kl,
        p99_kl=found.p99_kl,
        same_next_token=found.same_next_token,
        max_difference=found.max_difference,
        checkpoint_dtype=checkpoint_dtype,
        max_mean_kl=bounds.mean_kl,
        max_max_difference=bounds.max_difference,
    )


@dataclass(frozen=True)
class Verified:
    """Outcome of the comparison of a form; one that differs is never published."""

    comparison: ExportComparison | None
    """None: it was not run, and compared tensor by tensor only."""
    not_run: str = ""
    """Why it was not run."""
