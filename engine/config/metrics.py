"""Names of the metrics that compare two models on the same rows."""

import math
import re
from typing import Final

LOSS: Final = "loss"
PERPLEXITY: Final = "perplexity"
QUESTIONS: Final = "questions"
MUST_PASS: Final = "must_pass"  # noqa: S105 - the name of a metric
REGRESSION_LOSS: Final = "regression_loss"
GRADER_PREFIX: Final = "grader:"
CONTAINS_PREFIX: Final = "contains:"
REGEX_PREFIX: Final = "regex:"

ANSWER_METRICS: Final = (
    "exact_match",
    "normalized_match",
    "token_f1",
    "rouge_1",
    "rouge_2",
    "rouge_l",
    "bleu",
    "chrf",
    "fuzzy_match",
    "accuracy",
    "last_number",
    "valid_json",
    "json_match",
    "json_schema",
    "tool_call_name",
    "tool_call_arguments",
    "contains_expected",
    "length_words",
)
"""Metrics of an answer without a parameter."""
MEASURED_ALWAYS: Final = (LOSS, PERPLEXITY, QUESTIONS, MUST_PASS, REGRESSION_LOSS)
"""Metrics that a gate can name although `metrics` does not list them."""
MAX_PATTERN: Final = 1024


def checked_metric(name: str) -> str:
    """Returns a name of `EvaluationSpec.metrics`. Raises ValueError if there is no such metric."""
    if name in ANSWER_METRICS:
        return name
    if name.startswith(CONTAINS_PREFIX):
        if not name.removeprefix(CONTAINS_PREFIX):
            raise ValueError("contains: needs a text, such as contains:Paris")
        return name
    if name.startswith(REGEX_PREFIX):
        pattern = name.removeprefix(REGEX_PREFIX)
        if not pattern or len(pattern) > MAX_PATTERN:
            raise ValueError(f"regex: needs a pattern of at most {MAX_PATTERN:,} characters")
        checked_pattern(pattern)
        return name
    if name in MEASURED_ALWAYS:
        raise ValueError(
            f"{name} is always measured where there are rows; remove it here, and name it in gate if needed"
        )
    known = ", ".join(ANSWER_METRICS)
    raise ValueError(f"there is no such metric; metrics are {known}, contains:TEXT and regex:PATTERN")


def value_range(name: str) -> tuple[float, float]:
    """Returns the smallest and the largest possible value of a metric."""
    if name in ("bleu", "chrf"):
        return 0.0, 100.0
    if name.startswith(GRADER_PREFIX):
        return -math.inf, math.inf
    return 0.0, math.inf if name in (LOSS, PERPLEXITY, REGRESSION_LOSS, "length_words") else 1.0


def checked_pattern(pattern: str) -> str:
    """Returns a regular expression. Raises ValueError if it is none."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return pattern
