"""Counts tokenised rows in memory that does not grow with their number."""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

PERCENTILES = (50, 90, 95, 99)
_SAMPLED_LETTERS = 50
_SAMPLED_CHARACTERS = 400
_LETTER = re.compile("[A-Za-z]")


@dataclass
class Statistics:
    """The counts of `finetuneflow.v1.DataStatistics`, under the same names; tokens are counted after truncation."""

    num_examples: int = 0
    """Examples that are trained or evaluated on; dropped rows and duplicates are excluded."""
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_truncated: int = 0
    """Truncated examples among num_examples."""
    num_duplicates: int = 0
    num_dropped: int = 0
    """Rows dropped because they have no trained tokens."""
    num_cut_off: int = 0
    """Rows among num_dropped whose trained tokens were all truncated."""
    num_too_long: int = 0
    """Rows dropped because they are longer than max_length, with truncation "drop"."""
    num_left_out: int = 0
    """Rows dropped as incomplete, for example with an empty answer, or because the row template writes nothing."""
    max_tokens: int = 0
    format: str = ""
    lengths: dict[int, int] = field(default_factory=dict)
    """Length in tokens → number of rows. At most max_length entries."""
    roles: dict[str, int] = field(default_factory=dict)
    """Role → number of turns in conversations."""
    scripts: dict[str, int] = field(default_factory=dict)
    """Writing system of most of a row's first letters (latin, cyrillic, cjk, …) → number of rows."""
    languages: dict[str, dict[str, int]] = field(default_factory=dict)
    """Role → language (`language_of`) → number of texts, in the sampled rows."""

    def count(self, tokens: int, trained: int, truncated: bool) -> None:
        """Counts one row."""
        self.num_examples += 1
        self.num_tokens += tokens
        self.num_trained_tokens += trained
        self.num_truncated += truncated
        self.max_tokens = max(self.max_tokens, tokens)
        self.lengths[tokens] = self.lengths.get(tokens, 0) + 1

    def add(self, other: "Statistics") -> None:
        """Adds the counts of other rows; the format is unchanged."""
        for name in (
            "num_examples", "num_tokens", "num_trained_tokens", "num_truncated", "num_duplicates", "num_dropped",
            "num_cut_off", "num_too_long",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_tokens = max(self.max_tokens, other.max_tokens)
        _add(self.lengths, other.lengths)
        _add(self.roles, other.roles)
        _add(self.scripts, other.scripts)
        for role, languages in other.languages.items():
            _add(self.languages.setdefault(role, {}), languages)

    @property
    def mean_tokens(self) -> float:
        return self.num_tokens / self.num_examples if self.num_examples else 0.0

    def percentiles(self) -> dict[int, int]:
        """Returns the percentiles of the length: percent → tokens that this share of the rows does not exceed. Empty
        without rows."""
        found: dict[int, int] = {}
        seen = 0
        wanted = list(PERCENTILES)
        for length, rows in sorted(self.lengths.items()):
            seen += rows
            while wanted and seen * 100 >= wanted[0] * self.num_examples:
                found[wanted.pop(0)] = length
        return found

    def histogram(self) -> dict[int, int]:
        """Returns the distribution of lengths: upper bound (a power of two, inclusive) → number of rows above the
        previous bound. Bounds without rows are absent."""
        counted: Counter[int] = Counter()
        for length, rows in self.lengths.items():
            counted[1 << max(length - 1, 0).bit_length()] += rows
        return dict(sorted(counted.items()))


@dataclass
class RowCounts:
    """Number of rows of a job's files per outcome. Each row is counted once, whatever its weight and the number of
    phases that read it."""

    incomplete: int = 0
    """Dropped as incomplete."""
    unwritten: int = 0
    """Dropped because the row template writes nothing for them."""
    turns_cut: int = 0
    """Conversations from which turns before the first question or after the last answer were dropped."""
    duplicates: int = 0
    """Duplicates; examples are counted if a row template makes several of a row."""
    truncated: int = 0
    """Truncated, and trained or evaluated on."""
    dropped: int = 0
    """Dropped because they have no trained tokens."""
    cut_off: int = 0
    """Rows among `dropped` whose trained tokens were all truncated."""
    too_long: int = 0
    """Dropped because they are longer than max_length."""


def _add(counted: dict[Any, int], others: dict[Any, int]) -> None:
    for key, number in others.items():
        counted[key] = counted.get(key, 0) + number


def script_of(text: str) -> str:
    """Returns the writing system of most of the first letters; empty for a text without letters."""
    if text[:_SAMPLED_CHARACTERS].isascii():
        return "latin" if _LETTER.search(text, 0, _SAMPLED_CHARACTERS) else ""
    names: Counter[str] = Counter()
    letters = (letter for letter in text[:_SAMPLED_CHARACTERS] if letter.isalpha())
    for letter in islice(letters, _SAMPLED_LETTERS):
        names["latin" if letter.isascii() else unicodedata.name(letter, "unknown").split()[0].lower()] += 1
    return names.most_common(1)[0][0] if names else ""
