"""Grades answers by grader objects (`engine.config.graders`). A judge is asked through a callback."""

import ast
import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from engine.config.graders import (
    FIRST,
    SECOND,
    CompareModel,
    Grader,
    LabelModel,
    Multi,
    ScoreModel,
    StringCheck,
    TextSimilarity,
    checked_formula,
    filled,
    placeholders,
    value_at,
)
from engine.evaluation.answer_metrics import fuzzy_match, gleu, rouge, sentence_bleu
from engine.evaluation.texts import json_value, normalized

Turns = list[dict[str, str]]
Ask = Callable[[str, int, Sequence[Turns]], list[str]]
"""(model, most tokens, conversations) → answers of the judge."""
_NUMBER: Final = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)")
_KEYS: Final = ("result", "score", "label", "choice")


@dataclass(frozen=True)
class Sample:
    """A row with the answer of one model."""

    item: Mapping[str, Any]
    answer: str


@dataclass
class Problems:
    """Counts of rows that could not be graded."""

    missing: dict[str, int] = field(default_factory=dict)
    """By path of a placeholder: rows that have no such value."""
    unreadable: int = 0
    """Answers of a judge that are no number in its range, or none of its labels."""
    agreed: int = 0
    """Pairs of answers of which a judge chose the same one in both orders."""
    compared: int = 0


def grades(read: Grader, samples: Sequence[Sample], ask: Ask, problems: Problems) -> list[float | None]:
    """Returns the grade of each sample, in [0, 1]; None for one that could not be graded."""
    match read:
        case Multi():
            parts = {name: grades(inner, samples, ask, problems) for name, inner in read.graders.items()}
            tree = checked_formula(read.calculate_output, read.graders)
            return [
                _calculated(tree, {name: part[index] for name, part in parts.items()}) for index in range(len(samples))
            ]
        case StringCheck() | TextSimilarity():
            return [_of_texts(read, sample, problems) for sample in samples]
        case ScoreModel() | LabelModel():
            return _judged(read, samples, ask, problems)
        case CompareModel():
            raise TypeError("a compare_model grader compares two answers; call `preferred`")


def preferred(
    read: CompareModel, base: Sequence[Sample], tuned: Sequence[Sample], ask: Ask, problems: Problems
) -> list[float | None]:
    """Returns for each row 1 if the judge prefers the tuned model's answer, 0 if the base's, 0.5 for a tie."""
    asked: list[Turns] = []
    rows: list[int] = []
    for index, (before, after) in enumerate(zip(base, tuned, strict=True)):
        for first, second in ((before.answer, after.answer), (after.answer, before.answer)):
            turns = _turns(read, Sample(after.item, ""), problems, {FIRST: first, SECOND: second})
            if turns is not None:
                asked.append(_instructed(turns, "Answer with one word: first, second or tie."))
                rows.append(index)
    votes: dict[int, list[float | None]] = {}
    answers = ask(read.model, read.sampling_params.max_completions_tokens, asked)
    for number, (index, answer) in enumerate(zip(rows, answers, strict=True)):
        choice = _label(answer, ("first", "second", "tie"))
        value = {"first": 0.0, "second": 1.0, "tie": 0.5}.get(choice or "")
        problems.unreadable += value is None
        votes.setdefault(index, []).append(value if value is None or number % 2 == 0 else 1 - value)
    found: list[float | None] = [None] * len(base)
    for index, (one, other) in votes.items():
        if one is None or other is None:
            continue
        problems.compared += 1
        problems.agreed += one == other
        found[index] = one if one == other else 0.5
    return found


def _of_texts(read: StringCheck | TextSimilarity, sample: Sample, problems: Problems) -> float | None:
    given, reference = (_text(text, sample, problems, {}) for text in (read.input, read.reference))
    if given is None or reference is None:
        return None
    if isinstance(read, StringCheck):
        return float(_OPERATIONS[read.operation](given, reference))
    value = _similarity(read.evaluation_metric, given, reference)
    return value if read.pass_threshold is None else float(value >= read.pass_threshold)


def _similarity(metric: str, given: str, reference: str) -> float:
    if metric == "bleu":
        return sentence_bleu(given, reference)
    if metric == "gleu":
        return gleu(given, reference)
    found = fuzzy_match(given, reference) if metric == "fuzzy_match" else rouge(metric, given, reference)
    return found or 0.0


def _judged(
    read: ScoreModel | LabelModel, samples: Sequence[Sample], ask: Ask, problems: Problems
) -> list[float | None]:
    found: list[float | None] = [None] * len(samples)
    asked: list[Turns] = []
    rows: list[int] = []
    if isinstance(read, ScoreModel):
        instruction = f"Answer with one number from {read.range[0]:g} to {read.range[1]:g}, and nothing else."
    else:
        instruction = f"Answer with one of these labels, and nothing else: {', '.join(read.labels)}."
    for index, sample in enumerate(samples):
        turns = _turns(read, sample, problems, {})
        if turns is not None:
            asked.append(_instructed(turns, instruction))
            rows.append(index)
    answers = ask(read.model, read.sampling_params.max_completions_tokens, asked)
    for index, answer in zip(rows, answers, strict=True):
        grade = _score(read, answer) if isinstance(read, ScoreModel) else _passes(read, answer)
        problems.unreadable += grade is None
        found[index] = grade
    return found


def _score(read: ScoreModel, answer: str) -> float | None:
    """Returns the grade of a judge's score; None if the answer has not exactly one number, or one out of range."""
    is_json, value = json_value(answer)
    if is_json and isinstance(value, dict):
        value = next((value[key] for key in _KEYS if key in value), None)
    if not isinstance(value, int | float) or isinstance(value, bool):
        numbers = _NUMBER.findall(answer)
        value = float(numbers[0]) if len(numbers) == 1 and not is_json else None
    low, high = read.range
    if value is None or not low <= value <= high:
        return None
    return float(value >= read.pass_threshold) if read.pass_threshold is not None else (value - low) / (high - low)


def _passes(read: LabelModel, answer: str) -> float | None:
    label = _label(answer, read.labels)
    return None if label is None else float(label in read.passing_labels)


def _label(answer: str, labels: Sequence[str]) -> str | None:
    """Returns the only label that an answer names; None if it names none or several."""
    is_json, value = json_value(answer)
    if is_json and isinstance(value, dict):
        answer = str(next((value[key] for key in _KEYS if key in value), ""))
    given = f" {normalized(answer)} "
    named = [label for label in labels if f" {normalized(label)} " in given]
    exact = [label for label in named if given.strip() == normalized(label)]
    return exact[0] if len(exact) == 1 else named[0] if len(named) == 1 else None


def _turns(
    read: ScoreModel | LabelModel | CompareModel, sample: Sample, problems: Problems, given: Mapping[str, str]
) -> Turns | None:
    turns = []
    for turn in read.input:
        text = _text(turn.content, sample, problems, given)
        if text is None:
            return None
        turns.append({"role": "system" if turn.role == "developer" else turn.role, "content": text})
    return turns


def _instructed(turns: Turns, instruction: str) -> Turns:
    """Adds the form of the answer to the last turn; a model of a service would be made to keep it."""
    *before, last = turns
    if last["role"] != "user":
        return [*turns, {"role": "user", "content": instruction}]
    return [*before, {"role": "user", "content": f"{last['content']}\n\n{instruction}"}]


def _text(text: str, sample: Sample, problems: Problems, given: Mapping[str, str]) -> str | None:
    """Returns a text with its placeholders replaced; None if the row lacks a value."""
    values = dict(given)
    for path in placeholders(text):
        value = values.get(path, _value(path, sample))
        if value is None:
            problems.missing[path] = problems.missing.get(path, 0) + 1
            return None
        values[path] = value
    return filled(text, values)


def _value(path: str, sample: Sample) -> str | None:
    if path == "sample.output_text":
        return sample.answer
    root, *keys = path.split(".")
    value: Any = sample.item
    if root == "sample":
        is_json, value = json_value(sample.answer)
        keys = keys[1:]
        if not is_json:
            return ""
    value = value_at(".".join([root, *keys]), value)
    if value is None:
        return "" if root == "sample" else None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _calculated(tree: ast.Expression, values: Mapping[str, float | None]) -> float | None:
    if any(value is None for value in values.values()):
        return None
    try:
        value = _evaluated(tree.body, values)
    except (ArithmeticError, ValueError, TypeError):
        return None
    return min(max(float(value), 0.0), 1.0) if isinstance(value, int | float) and math.isfinite(value) else None


def _evaluated(node: ast.AST, values: Mapping[str, float | None]) -> Any:
    match node:
        case ast.Constant(value=value):
            return float(value)  # type: ignore[arg-type]
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluated(inner, values)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _evaluated(inner, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_evaluated(left, values), _evaluated(right, values))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_evaluated(each, values) for each in arguments))
    raise ValueError("not arithmetic")


_OPERATIONS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "like": lambda given, reference: reference in given,
    "ilike": lambda given, reference: reference.casefold() in given.casefold(),
}
_ARITHMETIC: Final[Mapping[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    # As float, or a tower of powers of whole numbers would have more digits than fit into memory.
    ast.Pow: math.pow,
}
_FUNCTIONS: Final[Mapping[str, Callable[..., float]]] = {
    "abs": abs,
    "ceil": math.ceil,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "max": max,
    "min": min,
    "sqrt": math.sqrt,
}
