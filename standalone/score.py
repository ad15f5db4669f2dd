"""`ftf score`: metrics of a file of answers, without a server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from engine.config.metrics import MEASURED_ALWAYS, checked_metric
from engine.errors import JobError
from engine.evaluation.answer_metrics import answer_metric
from engine.evaluation.choice import chosen_metrics
from engine.evaluation.comparison import CONFIDENCE, Compared
from engine.evaluation.inferencer_outputs import read_outputs
from engine.evaluation.paired_answers import compare_answers

_NOT_OF_FILES: Final = (*MEASURED_ALWAYS, "json_schema")


def scores(outputs: Path, against: Path | None, metrics: Sequence[str]) -> Iterator[Compared]:
    """Yields the comparison by each metric; of the file with itself if there is no other one.

    Raises JobError for a file that cannot be used, and for two files that do not answer the same.
    """
    asked, answers, expected = read_outputs(outputs)
    others = answers
    if against is not None:
        other_asked, others, other_expected = read_outputs(against)
        if (asked, expected) != (other_asked, other_expected):
            message = f"{outputs.name} and {against.name} have different prompts or expected answers."
            raise JobError("BAD_DATA", message, "Compare files that answer the same rows in the same order.")
    for name in metrics or chosen_metrics(expected):
        if name in _NOT_OF_FILES:
            raise ValueError(f"{name} needs more than a file of answers; use ftf evaluate")
        yield compare_answers(answer_metric(checked_metric(name)), others, answers, expected).compared


def as_row(found: Compared, *, is_alone: bool) -> dict[str, Any]:
    """Returns the figures of a metric for `--json`."""
    value = found.value_interval() or (None, None)
    row = {
        "metric": found.paired.name,
        "value": found.tuned,
        "value_low": value[0],
        "value_high": value[1],
        "confidence": CONFIDENCE,
        "num_rows": found.num_rows,
        "signature": found.paired.signature,
    }
    if is_alone:
        return row
    gain = found.gain_interval() or (None, None)
    return row | {
        "against": found.base,
        "gain": found.gain,
        "gain_low": gain[0],
        "gain_high": gain[1],
        "num_improved": found.num_improved,
        "num_worsened": found.num_worsened,
        "p_value": found.p_value,
        "conclusion": found.conclusion,
    }


def json_lines(rows: Sequence[dict[str, Any]]) -> str:
    """Returns one line of JSON per metric."""
    return "\n".join(json.dumps(row) for row in rows)
