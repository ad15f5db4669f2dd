"""Rows of an evaluation: what the models made of each held-out row, as evaluation_rows.jsonl holds it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.config.metrics import LOSS, MUST_PASS, QUESTIONS
from engine.evaluation.held_out import HeldOutRow
from engine.evaluation.questions import CriticalQuestion
from services.evaluator.worker.measurements import RowLoss

HELD_OUT = "held_out"
QUESTION = "question"
_NO_LOSS = RowLoss(0.0, 0)


@dataclass
class MeasuredRow:
    """A held-out row or a critical question, with losses and answers of both models, and the metrics of these.

    Values of the base model are None or absent if only one model was measured.
    """

    index: int
    text: HeldOutRow
    base_loss: RowLoss | None = _NO_LOSS
    tuned_loss: RowLoss = _NO_LOSS
    source: str = HELD_OUT
    base_answer: str | None = None
    tuned_answer: str | None = None
    base_metrics: dict[str, float] = field(default_factory=dict)
    tuned_metrics: dict[str, float] = field(default_factory=dict)
    changes: dict[str, str] = field(default_factory=dict)
    """By metric: IMPROVED, WORSENED or EQUAL."""

    def note(
        self, metric: str, base: float | None, tuned: float, *, higher_is_better: bool, has_direction: bool
    ) -> None:
        """Adds the values of a metric."""
        self.tuned_metrics[metric] = tuned
        if base is None:
            return
        self.base_metrics[metric] = base
        if has_direction:
            self.changes[metric] = change(base, tuned, higher_is_better=higher_is_better)

    def as_json(self) -> dict[str, Any]:
        """Returns the row in the form of the message EvaluationRow; a loss that is not a number is left out."""
        losses = {"tuned_loss": self.tuned_loss.loss}
        if self.base_loss is not None:
            losses["base_loss"] = self.base_loss.loss
        answers = {"base_answer": self.base_answer, "tuned_answer": self.tuned_answer}
        return {
            "index": self.index,
            "source": self.source,
            "prompt": self.text.prompt,
            "expected": self.text.expected_output,
            **{name: text for name, text in answers.items() if text is not None},
            **{name: loss for name, loss in losses.items() if math.isfinite(loss)},
            "num_trained_tokens": self.tuned_loss.num_trained,
            "base_metrics": self.base_metrics,
            "tuned_metrics": self.tuned_metrics,
            "changes": {metric: f"ROW_CHANGE_{change}" for metric, change in self.changes.items()},
        }


def change(base: float, tuned: float, *, higher_is_better: bool) -> str:
    """Returns IMPROVED, WORSENED or EQUAL. A tuned value that is not a number is worse."""
    if base == tuned:
        return "EQUAL"
    return "IMPROVED" if (tuned > base) == higher_is_better and not math.isnan(tuned) else "WORSENED"


def measured_rows(
    texts: Sequence[HeldOutRow],
    answered: Sequence[int],
    losses: tuple[Sequence[RowLoss] | None, Sequence[RowLoss]],
    answers: tuple[Sequence[str] | None, Sequence[str]],
) -> list[MeasuredRow]:
    """Joins texts, losses of base and tuned model, and their answers to the rows `answered`. None for a base model that
    was not measured."""
    before, after = losses
    made = [
        MeasuredRow(index, text, None, tuned_loss)
        for index, (text, tuned_loss) in enumerate(zip(texts, after, strict=True))
    ]
    for row, base_loss in zip(made, before, strict=True) if before is not None else ():
        row.base_loss = base_loss
        row.changes[LOSS] = change(base_loss.loss, row.tuned_loss.loss, higher_is_better=False)
    for index, answer in zip(answered, answers[1], strict=True):
        made[index].tuned_answer = answer
    for index, answer in zip(answered, answers[0], strict=True) if answers[0] is not None else ():
        made[index].base_answer = answer
    return made


def question_row(
    index: int,
    question: CriticalQuestion,
    prompt: str,
    answers: tuple[str | None, str],
    passed: tuple[float | None, float],
) -> MeasuredRow:
    """Returns a critical question with the answers of base and tuned model; `passed` is 1 or 0 for each, None for a
    base model that was not measured."""
    text = HeldOutRow(question.text, "", "", [*question.messages], prompt, question.item, has_question=True)
    row = MeasuredRow(index, text, source=QUESTION, base_answer=answers[0], tuned_answer=answers[1])
    row.note(QUESTIONS, *passed, higher_is_better=True, has_direction=True)
    if question.must_pass:
        row.note(MUST_PASS, *passed, higher_is_better=True, has_direction=True)
    return row


def write_rows(rows: Sequence[MeasuredRow], path: Path) -> None:
    """Writes one line of JSON per row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row.as_json(), ensure_ascii=False) + "\n")
