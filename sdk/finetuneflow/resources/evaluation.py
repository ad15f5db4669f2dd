"""Comparisons of tuned models with their bases."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from finetuneflow.resources.convert import Resource
from finetuneflow.resources.stage_result import EvaluationResult


@dataclass(frozen=True, kw_only=True)
class Evaluation(Resource):
    """A comparison of a tuned model with its base."""

    id: str
    """`ev_` and 26 characters."""
    job_id: str
    """The job whose model was evaluated."""
    result: EvaluationResult | None
    """The measured losses and samples."""
    create_time: datetime | None
    """Time at which the gateway accepted the evaluation."""

    @property
    def delta(self) -> float | None:
        """Tuned loss minus base loss on the held-out rows, in nats per trained token: negative is better. None if
        either was not measured."""
        if self.result is None or self.result.tuned_loss is None or self.result.base_loss is None:
            return None
        return self.result.tuned_loss - self.result.base_loss
