"""Metrics of answers, against the reference libraries and by hand."""

import json
import random

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf, sentence_chrf

from engine.config.metrics import ANSWER_METRICS, checked_metric
from engine.evaluation.answer_metrics import answer_metric, gleu, sentence_bleu
from engine.evaluation.texts import json_value, last_number, normalized, tool_calls, words

_WORDS = ["the", "a", "cat", "dog", "sat", "on", "mat", "Paris", "fast", "7"]


def _sentences(count: int, seed: int) -> list[str]:
    chosen = random.Random(seed)  # noqa: S311
    return [" ".join(chosen.choices(_WORDS, k=chosen.randint(1, 12))) for _ in range(count)]


def _value(name: str, answer: str, expected: str) -> float | None:
    return answer_metric(name).of_row(answer, expected)


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words(text)


@pytest.mark.parametrize(("ours", "theirs"), [("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")])
def test_rouge_is_that_of_the_reference_library(ours: str, theirs: str) -> None:
    """Figures are compared with those of papers and of other tools."""
    reference = RougeScorer([theirs], tokenizer=_Words())
    for answer, expected in zip(_sentences(100, 1), _sentences(100, 2), strict=True):
        assert _value(ours, answer, expected) == pytest.approx(reference.score(expected, answer)[theirs].fmeasure)


def test_rouge_of_formulas_is_that_of_the_reference_library_with_its_own_words() -> None:
    """Symbols separate words in every tool that figures are compared with."""
    answer, expected = "She has 3+5=<<3+5=8>>8 apples for $16.", "She buys 3+5=<<3+5=8>>8 apples and pays $16."
    reference = RougeScorer(["rougeL"]).score(expected, answer)["rougeL"].fmeasure
    assert _value("rouge_l", answer, expected) == pytest.approx(reference)


def test_rouge_counts_words_of_every_script() -> None:
    """The reference library's own tokenizer gives 0 to two equal answers in Chinese, Arabic or Greek."""
    for text in ("北京是中国的首都", "القاهرة عاصمة مصر", "Η Αθήνα είναι η πρωτεύουσα", "Москва — столица"):
        assert RougeScorer(["rouge1"]).score(text, text)["rouge1"].fmeasure == 0
        assert _value("rouge_1", text, text) == 1
        assert _value("rouge_l", text, text) == 1
    assert 0 < (_value("rouge_1", "北京是首都", "北京是中国的首都") or 0) < 1


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    answers, expected = _sentences(50, 3), _sentences(50, 4)
    for name, reference in (("bleu", corpus_bleu), ("chrf", corpus_chrf)):
        corpus = answer_metric(name).corpus
        assert corpus is not None
        counts = corpus.counts(answers, expected)
        assert counts.shape[0] == 50
        assert corpus.score(counts.sum(0)) == pytest.approx(reference(answers, [expected]).score)
        half = counts[:25].sum(0)
        assert corpus.score(half) == pytest.approx(reference(answers[:25], [expected[:25]]).score)
    assert _value("chrf", answers[0], expected[0]) == pytest.approx(sentence_chrf(answers[0], [expected[0]]).score)
    assert "version:2" in answer_metric("bleu").signature and "nrefs:1" in answer_metric("chrf").signature


def test_gleu_is_that_of_its_paper() -> None:
    assert gleu("the cat sat on the mat", "the cat sat on the mat") == 1
    # 2 of 3 n-grams (the, cat, "the cat") of the shorter text are in the longer one, which has 6.
    assert gleu("the cat", "the cat sat") == pytest.approx(3 / 6)
    assert gleu("", "the cat") == 0
    assert 0 < sentence_bleu("the cat sat on a mat", "the cat sat on the mat") < 1


@pytest.mark.parametrize(
    ("name", "answer", "expected", "value"),
    [
        ("exact_match", " Paris\n", "Paris", 1),
        ("exact_match", "paris", "Paris", 0),
        ("exact_match", "Paris", "  ", None),
        ("normalized_match", "“PARIS”!", "paris", 1),
        ("normalized_match", "Ｐａｒｉｓ", "paris", 1),
        ("token_f1", "the capital is Paris", "Paris", 0.4),
        ("token_f1", "", "Paris", 0),
        ("accuracy", "Positive.\nBecause it is good.", "positive", 1),
        ("accuracy", "negative", "positive", 0),
        ("last_number", "16 - 3 = 13, so she has $1,234.50.", "#### 1234.5", 1),
        ("last_number", "It is 7 or 8.", "#### 7", 0),
        ("last_number", "no idea", "#### 7", 0),
        ("last_number", "7", "seven", None),
        ("last_number", "It is 3-5.", "#### 5", 1),
        ("last_number", "2024-05-06", "6", 1),
        ("last_number", "It is \u22125.", "-5", 1),
        ("last_number", "(-5)", "-5", 1),
        ("accuracy", "C++", "c++", 1),
        ("accuracy", "C++", "C#", 0),
        ("json_match", '{"a": true}', '{"a": 1}', 0),
        ("regex:^(\\w|\\w\\w|\\s)+\\d$", "word " * 40, "", None),
        ("valid_json", '```json\n{"a": 1}\n```', "", 1),
        ("valid_json", '{"a": NaN}', "", 0),
        ("json_match", '{"b": [1, 2], "a": 1.0}', '{"a": 1, "b": [1, 2]}', 1),
        ("json_match", '{"a": 2}', '{"a": 1}', 0),
        ("json_match", "{}", "not JSON", None),
        ("contains_expected", "The answer is Paris, of course.", "paris", 1),
        ("contains_expected", "Parish", "Paris", 0),
        ("contains:Paris", "I love Paris", "", 1),
        ("regex:^\\d+$", "12", "", 1),
        ("regex:^\\d+$", "12 apples", "", 0),
        ("length_words", "three words here", "", 3),
        ("fuzzy_match", "abcd", "abcd", 1),
    ],
)
def test_metrics_of_one_answer(name: str, answer: str, expected: str, value: float | None) -> None:
    assert _value(name, answer, expected) == (None if value is None else pytest.approx(value))


def test_tool_calls_are_compared_by_name_and_by_arguments() -> None:
    """The same call may be written in tags or bare, with its keys in another order, its arguments as a string."""
    expected = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 2}}\n</tool_call>'
    same = 'Let me look.\n{"name": "weather", "parameters": {"days": 2, "city": "Oslo"}}'
    arguments_text = json.dumps(json.dumps({"city": "Oslo", "days": 2}))
    as_text = f'[{{"type": "function", "function": {{"name": "weather", "arguments": {arguments_text}}}}}]'
    other_city = '{"name": "weather", "arguments": {"city": "Rome", "days": 2}}'
    for answer, name, arguments in (
        (same, 1, 1),
        (as_text, 1, 1),
        (other_city, 1, 0),
        (same + other_city, 0, 0),
        ("I don't know {", 0, 0),
    ):
        assert _value("tool_call_name", answer, expected) == name, answer
        assert _value("tool_call_arguments", answer, expected) == arguments, answer
    assert tool_calls('{"name": 3, "arguments": {}}') == []
    assert tool_calls("[" * 20_000 + '{"a":' * 5_000) == [], "a degenerate answer takes no time"


def test_answers_are_checked_against_a_json_schema() -> None:
    schema = {"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}}
    metric = answer_metric("json_schema", schema)
    assert [metric.of_row(answer, "") for answer in ('{"age": 3}', '{"age": "3"}', "{", "")] == [1, 0, 0, 0]


def test_normal_forms() -> None:
    assert normalized("  “Straße” —\tNo. 5 ") == "strasse no 5"
    assert words("don't stop 北京") == ["don", "t", "stop", "北", "京"]
    assert last_number("-1,234.5 and -.5") == -0.5
    assert json_value("```\n[1]\n```") == (True, [1])
    assert json_value("[" * 100_000) == (False, None)


def test_every_listed_metric_can_be_computed() -> None:
    for name in ANSWER_METRICS:
        metric = answer_metric(checked_metric(name), {"type": "object"})
        assert metric.name == name
        metric.of_row("an answer", '{"name": "x", "arguments": {}}')
    with pytest.raises(ValueError, match="there is no such metric; metrics are exact_match"):
        checked_metric("rogue_l")
