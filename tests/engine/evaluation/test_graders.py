"""Grader objects as OpenAI documents them, and judges."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.config.evaluation import Evaluation
from engine.config.graders import grader
from engine.errors import JobError
from engine.evaluation.graders import Problems, Sample, Turns, grades, preferred
from engine.evaluation.questions import read_questions

ITEM = {"question": "Capital of France?", "reference_answer": "Paris", "meta": {"difficulty": 3}, "tags": ["geo"]}


def no_judge(model: str, most: int, asked: Sequence[Turns]) -> list[str]:
    raise AssertionError("no judge is asked")


def graded(value: dict[str, Any], answer: str, item: dict[str, Any] = ITEM) -> float | None:
    return grades(grader(value), [Sample(item, answer)], no_judge, Problems())[0]


@pytest.mark.parametrize(
    ("operation", "answer", "grade"),
    [
        ("eq", "Paris", 1),
        ("eq", "paris", 0),
        ("ne", "Rome", 1),
        ("like", "It is Paris.", 1),
        ("like", "PARIS", 0),
        ("ilike", "PARIS!", 1),
    ],
)
def test_string_check(operation: str, answer: str, grade: float) -> None:
    value = {
        "type": "string_check",
        "name": "Example string check grader",
        "input": "{{sample.output_text}}",
        "reference": "{{item.reference_answer}}",
        "operation": operation,
    }
    assert graded(value, answer) == grade


def test_text_similarity_with_and_without_a_threshold() -> None:
    value = {
        "type": "text_similarity",
        "name": "Example text similarity grader",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.reference_answer }}",
        "evaluation_metric": "fuzzy_match",
    }
    assert graded(value, "Paris") == 1
    assert 0 < (graded(value, "Pari") or 0) < 1
    assert graded({**value, "pass_threshold": 0.8}, "Pari") == 1
    assert graded({**value, "pass_threshold": 0.95}, "Pari") == 0
    for metric in ("bleu", "gleu", "rouge_1", "rouge_5", "rouge_l"):
        assert graded({**value, "evaluation_metric": metric}, "Rome") == 0


def test_multi_grader_calculates_with_the_grades_of_others() -> None:
    exact = {
        "type": "string_check",
        "name": "e",
        "input": "{{sample.output_text}}",
        "reference": "Paris",
        "operation": "eq",
    }
    value = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": exact, "found": {**exact, "operation": "like"}},
        "calculate_output": "0.5 * exact + min(found, 1) ^ 2 / 2",
    }
    assert graded(value, "Paris") == 1
    assert graded(value, "It is Paris") == 0.5
    assert graded({**value, "calculate_output": "10 * found"}, "Paris") == 1, "grades are limited to [0, 1]"
    assert graded({**value, "calculate_output": "found / 0"}, "Paris") is None
    assert graded({**value, "calculate_output": "9 ^ 9 ^ 9 ^ 9"}, "Paris") is None


def test_values_of_a_row_are_found_by_their_path() -> None:
    base = {"type": "string_check", "name": "n", "operation": "eq"}
    assert graded({**base, "input": "{{item.meta.difficulty}}", "reference": "3"}, "") == 1
    assert graded({**base, "input": "{{item.tags.0}}", "reference": "geo"}, "") == 1
    assert graded({**base, "input": "{{sample.output_json.city}}", "reference": "Oslo"}, '{"city": "Oslo"}') == 1
    assert graded({**base, "input": "{{sample.output_json.city}}", "reference": "Oslo"}, "no JSON") == 0
    problems = Problems()
    missing = grader({**base, "input": "{{item.absent}}", "reference": "x"})
    assert grades(missing, [Sample(ITEM, "a")], no_judge, problems) == [None]
    assert problems.missing == {"item.absent": 1}


JUDGE: dict[str, Any] = {
    "type": "score_model",
    "name": "quality",
    "model": "base",
    "input": [{"role": "user", "content": "Grade {{sample.output_text}} against {{item.reference_answer}}"}],
    "range": [1, 5],
}


@pytest.mark.parametrize(
    ("answer", "grade"),
    [("3", 0.5), ('{"result": 5}', 1), ("Score: 1", 0), ("7", None), ("4 of 5", None), ("good", None)],
)
def test_score_of_a_judge_is_read_and_never_guessed(answer: str, grade: float | None) -> None:
    problems = Problems()
    asked: list[Turns] = []

    def judge(model: str, most: int, conversations: Sequence[Turns]) -> list[str]:
        asked.extend(conversations)
        return [answer] * len(conversations)

    assert grades(grader(JUDGE), [Sample(ITEM, "Rome")], judge, problems) == [grade]
    assert problems.unreadable == (grade is None)
    assert asked[0][0]["content"].startswith("Grade Rome against Paris") and "from 1 to 5" in asked[0][0]["content"]


@pytest.mark.parametrize(
    ("answer", "grade"), [("Correct.", 1), ("incorrect", 0), ("correct or incorrect", None), ("?", None)]
)
def test_label_of_a_judge(answer: str, grade: float | None) -> None:
    value = {
        "type": "label_model",
        "name": "label",
        "model": "base",
        "input": [
            {"role": "developer", "content": [{"type": "input_text", "text": "You grade."}]},
            {"role": "user", "content": "{{sample.output_text}}"},
        ],
        "labels": ["correct", "incorrect"],
        "passing_labels": ["correct"],
    }
    assert grades(grader(value), [Sample(ITEM, "x")], lambda *_: [answer], Problems()) == [grade]


def test_preference_is_asked_in_both_orders_and_a_contradiction_is_a_tie() -> None:
    """A judge that always prefers the first answer must not decide anything."""
    value = {
        "type": "compare_model",
        "name": "better",
        "model": "base",
        "input": [{"role": "user", "content": "1: {{first.output_text}} 2: {{second.output_text}}"}],
    }
    base, tuned = [Sample(ITEM, "bad")], [Sample(ITEM, "good")]

    def biased(model: str, most: int, asked: Sequence[Turns]) -> list[str]:
        return ["first"] * len(asked)

    def right(model: str, most: int, asked: Sequence[Turns]) -> list[str]:
        return ["first" if "1: good" in turns[0]["content"] else "second" for turns in asked]

    problems = Problems()
    assert preferred(grader(value), base, tuned, biased, problems) == [0.5]  # type: ignore[arg-type]
    assert (problems.compared, problems.agreed) == (1, 0)
    assert preferred(grader(value), base, tuned, right, Problems()) == [1.0]  # type: ignore[arg-type]
    assert preferred(grader(value), tuned, base, right, Problems()) == [0.0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"type": "python", "source": "x"}, "runs code"),
        ({"type": "nothing"}, "it must be one of string_check"),
        ({"operation": "regex"}, "operation: input should be"),
        ({"input": "{{sample.output_tools}}"}, r"\{\{sample.output_tools\}\} is unknown"),
        ({"name": ""}, "name is missing"),
        ({"weight": 1}, "weight: extra inputs are not permitted"),
        ({"input": "{{first.output_text}}"}, "for type compare_model"),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_field(change: dict[str, Any], problem: str) -> None:
    value = {"type": "string_check", "name": "n", "input": "a", "reference": "b", "operation": "eq", **change}
    with pytest.raises(ValueError, match=problem):
        grader(value)


@pytest.mark.parametrize(
    "formula",
    ["__import__('os')", "exact.real", "exact if exact else 1", "[exact]", "exact and 1", "other", "exact << 2"],
)
def test_formula_runs_no_code(formula: str) -> None:
    exact = {"type": "string_check", "input": "a", "reference": "a", "operation": "eq"}
    with pytest.raises(ValueError, match="calculate_output"):
        grader({"type": "multi", "name": "m", "graders": {"exact": exact}, "calculate_output": formula})


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"metrics": ["json_schema"]}, "needs evaluation.json_schema"),
        ({"gate": [{"metric": "loss"}]}, "exactly one of min_gain, min_value and max_value"),
        ({"gate": [{"metric": "grader:x", "min_value": 1.0}]}, "there is no such grader"),
        ({"gate": [{"metric": "must_pass", "min_value": 1.0}]}, "there are no evaluation.questions"),
        ({"gate": [{"metric": "blue", "min_gain": 0.0}]}, r"gate\[0\].metric is 'blue': there is no such metric"),
        ({"gate": [{"metric": "accuracy", "min_value": 95}]}, "min_value is 95; for accuracy it is between 0 and 1"),
        ({"gate": [{"metric": "bleu", "min_gain": -101}]}, "for bleu it is between -100 and 100"),
        ({"gate": [{"metric": "loss", "max_value": -1}]}, "for loss it is between 0 and inf"),
        ({"json_schema": {"type": "nope"}}, "json_schema"),
        ({"json_schema": {"properties": {"a": {"pattern": "("}}}}, "is no regular expression"),
        ({"json_schema": {"patternProperties": {"a": {}}}}, "patternProperties is not available"),
        ({"json_schema": {"$ref": "https://example.com/schema"}}, "only references within the schema"),
        ({"metrics": ["regex:("]}, "is no regular expression"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Evaluation.model_validate(values)


def test_critical_questions_are_read_and_their_mistakes_named_by_row(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    texts = {"input": "{{sample.output_text}}", "reference": "{{item.right}}"}
    check = {"type": "string_check", "operation": "like", **texts}
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    written = [
        {"prompt": "Capital of France?", "right": "Paris", "must_pass": True, "graders": [check]},
        {"messages": turns, "right": "4", "graders": [check]},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in written))
    first, second = read_questions(path)
    assert first.must_pass and not second.must_pass and second.text == "2+2?" and first.item["right"] == "Paris"
    typo = json.dumps({"prompt": "x", "graders": [{**check, "reference": "{{item.rigth}}"}]})
    path.write_text('{"prompt": "x"}\nno JSON\n{"prompt": "x", "graders": [{"type": "python"}]}\n' + typo)
    with pytest.raises(JobError) as raised:
        read_questions(path)
    assert raised.value.reason == "BAD_QUESTIONS"
    assert [one.field for one in raised.value.violations] == [f"evaluation.questions row {n}" for n in (1, 2, 3, 4)]
    assert "runs code" in raised.value.violations[2].description
    assert "the row has no item.rigth" in raised.value.violations[3].description
