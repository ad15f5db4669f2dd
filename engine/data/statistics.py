"""Counts over tokenised rows, in a memory that does not grow with them."""

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
    """What `finetuneflow.v1.DataStatistics` says, under the same names; tokens are counted after truncation."""

    num_examples: int = 0
    """Those that are trained or evaluated on: none of the dropped, the left out and the duplicates."""
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_truncated: int = 0
    """Of num_examples, those that are cut."""
    num_duplicates: int = 0
    num_dropped: int = 0
    """Rows of which nothing would be trained."""
    num_cut_off: int = 0
    """Of num_dropped, those of which truncation left nothing that is trained."""
    num_too_long: int = 0
    """Rows that were to be dropped where they are longer than max_length."""
    num_left_out: int = 0
    """Rows left out as incomplete, by an empty answer for instance, or because a template writes nothing for them."""
    max_tokens: int = 0
    format: str = ""
    lengths: dict[int, int] = field(default_factory=dict)
    """Tokens of a row → rows of that length. At most max_length entries."""
    roles: dict[str, int] = field(default_factory=dict)
    """Role → turns of conversations."""
    scripts: dict[str, int] = field(default_factory=dict)
    """Writing system of most of a row's first letters (latin, cyrillic, cjk, …) → rows."""
    languages: dict[str, dict[str, int]] = field(default_factory=dict)
    """Role → language (`language_of`) → texts, in the rows that were sampled for it."""

    def count(self, tokens: int, trained: int, truncated: bool) -> None:
        """Takes one row in."""
        self.num_examples += 1
        self.num_tokens += tokens
        self.num_trained_tokens += trained
        self.num_truncated += truncated
        self.max_tokens = max(self.max_tokens, tokens)
        self.lengths[tokens] = self.lengths.get(tokens, 0) + 1

    def add(self, other: "Statistics") -> None:
        """Takes in what was counted elsewhere; the format stays."""
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
        """Percent → tokens that so many of the rows do not exceed. Empty without rows."""
        found: dict[int, int] = {}
        seen = 0
        wanted = list(PERCENTILES)
        for length, rows in sorted(self.lengths.items()):
            seen += rows
            while wanted and seen * 100 >= wanted[0] * self.num_examples:
                found[wanted.pop(0)] = length
        return found

    def histogram(self) -> dict[int, int]:
        """Upper bound (a power of two, inclusive) → rows above the bound before it, up to this one; none left out."""
        counted: Counter[int] = Counter()
        for length, rows in self.lengths.items():
            counted[1 << max(length - 1, 0).bit_length()] += rows
        return dict(sorted(counted.items()))


@dataclass
class RowCounts:
    """Rows of a job's files by what becomes of them: each once, however many phases read it and whatever its weight."""

    incomplete: int = 0
    unwritten: int = 0
    """For which the row template writes nothing."""
    turns_cut: int = 0
    """Conversations without what stood before their first question, or behind their last answer."""
    duplicates: int = 0
    """Examples, where a template makes several of a row."""
    truncated: int = 0
    """Cut, and trained or evaluated on."""
    dropped: int = 0
    """Of which nothing would be trained."""
    cut_off: int = 0
    """Of those dropped, the ones of which truncation left nothing."""
    too_long: int = 0


def _add(counted: dict[Any, int], others: dict[Any, int]) -> None:
    for key, number in others.items():
        counted[key] = counted.get(key, 0) + number


def script_of(text: str) -> str:
    """The writing system of most of the first letters; empty for a text without letters."""
    if text[:_SAMPLED_CHARACTERS].isascii():
        return "latin" if _LETTER.search(text, 0, _SAMPLED_CHARACTERS) else ""
    names: Counter[str] = Counter()
    letters = (letter for letter in text[:_SAMPLED_CHARACTERS] if letter.isalpha())
    for letter in islice(letters, _SAMPLED_LETTERS):
        names["latin" if letter.isascii() else unicodedata.name(letter, "unknown").split()[0].lower()] += 1
    return names.most_common(1)[0][0] if names else ""
