"""Comparisons of tuned models with their bases."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.stage_result import EvaluationResult
from finetuneflow.resources.work import ModelWork


@dataclass(frozen=True, kw_only=True)
class Evaluation(ModelWork):
    """A comparison of a tuned model with its base."""

    result: EvaluationResult | None
    """The measured losses and samples. None until it has SUCCEEDED."""

    @property
    def delta(self) -> float | None:
        """Tuned loss minus base loss on the held-out rows, in nats per trained token: negative is better. None if
        either was not measured."""
        if self.result is None or self.result.tuned_loss is None or self.result.base_loss is None:
            return None
        return self.result.tuned_loss - self.result.base_loss
