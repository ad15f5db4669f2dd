"""Counts over tokenised rows."""

from dataclasses import dataclass


@dataclass
class Statistics:
    """What `finetuneflow.v1.DataStatistics` says, under the same names; tokens are counted after truncation."""

    num_examples: int = 0
    num_tokens: int = 0
    num_trained_tokens: int = 0
    num_truncated: int = 0
    num_duplicates: int = 0
    num_dropped: int = 0
    """Rows of which truncation left nothing that is trained."""
    max_tokens: int = 0
    format: str = ""

    def count(self, tokens: int, trained: int, truncated: bool) -> None:
        """Takes one row in."""
        self.num_examples += 1
        self.num_tokens += tokens
        self.num_trained_tokens += trained
        self.num_truncated += truncated
        self.max_tokens = max(self.max_tokens, tokens)

    @property
    def mean_tokens(self) -> float:
        return self.num_tokens / self.num_examples if self.num_examples else 0.0
