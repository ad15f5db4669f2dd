"""Changes of the loss of single rows, as the evaluation measured them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CHANGES: Final = "evaluation_changes.png"
"""The plot of them."""


@dataclass(frozen=True)
class RowChange:
    """A held-out row."""

    index: int
    gain: float
    """Base loss minus tuned loss, in nats per trained token: positive if the tuned model is better."""
    expected: str
    base_answer: str
    """Empty if the row was not answered."""
    tuned_answer: str


def loss_changes(path: Path | None) -> list[RowChange]:
    """Reads evaluation_rows.jsonl; rows without a loss of both models are left out."""
    if path is None:
        return []
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        RowChange(
            row["index"],
            row["base_loss"] - row["tuned_loss"],
            row["expected"],
            row.get("base_answer", ""),
            row.get("tuned_answer", ""),
        )
        for row in rows
        if "base_loss" in row and "tuned_loss" in row
    ]
