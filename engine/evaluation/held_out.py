"""Held-out rows: their texts, and which of them are answered."""

import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HeldOutRow:
    """A line of eval_rows.jsonl, as `engine.data.block_tokenizer.eval_row` writes it."""

    instruction: str
    input: str
    expected_output: str
    messages: list[dict[str, Any]]
    """The conversation without its last answer; empty for plain text."""
    prompt: str
    """The rendered prompt."""
    item: dict[str, Any]
    """The row's columns."""
    has_question: bool
    """False for a text that is trained as a whole: what a model continues it with is neither right nor wrong."""
    answer: dict[str, Any] | None = None
    """The last answer of a conversation, as a turn; None for plain text, and in shards of an earlier version."""
    tools: list[dict[str, Any]] = field(default_factory=list)
    """JSON schemas of the tools that the conversation may call."""

    @property
    def values(self) -> dict[str, Any]:
        """Values that graders can name: the columns, and the texts under the names that every row has."""
        own = {"prompt": self.prompt, "instruction": self.instruction, "input": self.input}
        return {**own, "expected_output": self.expected_output, **self.item}


def read_held_out(path: Path, most: int | None = None) -> list[HeldOutRow]:
    """Reads eval_rows.jsonl, or its first rows; an empty list if there is no such file."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as lines:
        return [HeldOutRow(**json.loads(line)) for line in itertools.islice(lines, most)]


def answered_rows(rows: Sequence[HeldOutRow], most: int, num_samples: int, seed: int) -> list[int]:
    """Returns the indices of the rows to answer, in order: all that ask something, or `most` of them drawn by the seed.

    If none asks anything, the first `num_samples`, to be read by people.
    """
    asking = [index for index, row in enumerate(rows) if row.has_question]
    if not asking:
        return list(range(min(num_samples, most, len(rows))))
    if len(asking) <= most:
        return asking
    return sorted(random.Random(seed).sample(asking, most))  # noqa: S311 - which rows is no secret
