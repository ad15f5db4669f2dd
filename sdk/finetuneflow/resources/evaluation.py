"""Comparisons of tuned models with their bases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetuneflow.enums import enum_name
from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import EvaluationResult
from finetuneflow.resources.work import ModelWork
from finetuneflow.v1 import evaluation_pb2


@dataclass(frozen=True, kw_only=True)
class DataSource(Resource):
    """Rows of a dataset."""

    dataset: str
    """Id of the dataset."""


class RowChange(OpenEnum):
    """Comparison of the tuned model with the base model on one row."""

    IMPROVED = "IMPROVED"
    """The tuned model is better."""
    WORSENED = "WORSENED"
    """The tuned model is worse."""
    EQUAL = "EQUAL"
    """Both are equal."""


@dataclass(frozen=True, kw_only=True)
class EvaluationRow(Resource):
    """A held-out row or a critical question, and what both models made of it."""

    index: int
    """Index among the rows of the evaluation, from 0; critical questions follow the held-out rows."""
    source: str
    """`held_out` or `question`."""
    prompt: str
    """The prompt, as the chat template renders it."""
    expected: str
    """The expected answer."""
    base_answer: str | None
    """Answer of the base model. None if it did not answer this row, and if only one model was measured, as are all
    values of the base model."""
    tuned_answer: str | None
    """Answer of the tuned model. None if it did not answer this row."""
    base_loss: float | None
    """Loss of the base model in nats per trained token. None if it is not a number."""
    tuned_loss: float | None
    """Loss of the tuned model in nats per trained token. None if it is not a number."""
    num_trained_tokens: int
    """Number of tokens that the losses were computed on."""
    base_metrics: dict[str, float]
    """Metrics of the base model's answer, by name."""
    tuned_metrics: dict[str, float]
    """Metrics of the tuned model's answer, by name."""

    @property
    def changes(self) -> dict[str, RowChange]:
        """By metric, `loss` included: how the tuned model compares with the base model on this row. Empty if only one
        model was measured."""
        kind = evaluation_pb2.RowChange.DESCRIPTOR
        message: Any = self.proto
        return {name: RowChange(enum_name(kind, number)) for name, number in message.changes.items()}


@dataclass(frozen=True, kw_only=True)
class Evaluation(ModelWork):
    """A comparison of a tuned model with its base, or of two models; or the measurement of a base model alone."""

    against: str
    """The model that it is compared with. Empty for an evaluation left by a job (its base model), and if only one model
    is measured."""
    data: tuple[DataSource, ...]
    """The rows that it was asked for. Empty: the held-out rows of the job."""
    result: EvaluationResult | None
    """The measured losses and samples. None until it has SUCCEEDED."""

    @property
    def delta(self) -> float | None:
        """Tuned loss minus base loss on the held-out rows, in nats per trained token: negative is better. None if
        either was not measured."""
        if self.result is None or self.result.tuned_loss is None or self.result.base_loss is None:
            return None
        return self.result.tuned_loss - self.result.base_loss
