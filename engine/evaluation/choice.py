"""Chooses the metrics of an evaluation by what the expected answers are."""

from collections.abc import Callable, Sequence
from typing import Final

from engine.evaluation.answer_metrics import label_of
from engine.evaluation.texts import json_value, last_number, tool_calls, words

_MOST: Final = 0.9
"""Share of the expected answers that must be of a kind."""
_MAX_LABELS: Final = 20
_MIN_ROWS_PER_LABEL: Final = 3
_MAX_LABEL_WORDS: Final = 6
_SHORT_WORDS: Final = 12
_FINAL_ANSWER: Final = "####"
"""Mark that GSM8K writes before the number that is the answer."""


def chosen_metrics(expected: Sequence[str]) -> list[str]:
    """Returns names of metrics for answers to rows with these expected answers; empty if none is expected."""
    given = [text for text in expected if text.strip()]
    if not given:
        return []
    if _most(given, lambda text: bool(tool_calls(text))):
        return ["tool_call_name", "tool_call_arguments"]
    if _most(given, _is_json_object):
        return ["valid_json", "json_match", "fuzzy_match"]
    if labels(given):
        return ["accuracy"]
    if _most(given, lambda text: _FINAL_ANSWER in text) or _most(given, _is_number):
        return ["last_number"] if _most(given, _is_number) else ["last_number", "rouge_l"]
    if _mean_words(given) <= _SHORT_WORDS:
        return ["exact_match", "normalized_match", "token_f1", "chrf"]
    return ["token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"]


def labels(expected: Sequence[str]) -> list[str]:
    """Returns the distinct labels, sorted, if the expected answers are few distinct ones; otherwise an empty list."""
    found = sorted({label_of(text) for text in expected})
    few = 2 <= len(found) <= _MAX_LABELS and len(expected) >= _MIN_ROWS_PER_LABEL * len(found)
    short = all(len(words(text)) <= _MAX_LABEL_WORDS and len(text.strip().splitlines()) == 1 for text in expected)
    named = all(found) and not all(_is_number(text) for text in expected)
    return found if few and short and named else []


def _most(texts: Sequence[str], is_of_kind: Callable[[str], bool]) -> bool:
    return sum(map(is_of_kind, texts)) >= _MOST * len(texts)


def _is_json_object(text: str) -> bool:
    is_json, value = json_value(text)
    return is_json and isinstance(value, dict | list)


def _is_number(text: str) -> bool:
    return len(text.split()) == 1 and last_number(text) is not None and not any(map(str.isalpha, text))


def _mean_words(texts: Sequence[str]) -> float:
    return sum(len(words(text)) for text in texts) / len(texts)
