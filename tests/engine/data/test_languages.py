"""Which languages a dataset is in: a half that is in another one is seldom meant."""

import json
from pathlib import Path

import pytest

from engine.config.job import job_config
from engine.data.languages import is_sampled, language_of
from engine.data.prepare import prepare
from tests.tiny_models import make_tiny_tokenizer

GERMAN = "Heute gehen wir alle zusammen im Park spazieren, weil die Sonne scheint und es warm ist."
ENGLISH = "Tomorrow we will all stay at home, because it is going to rain and will be cold."


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("How many apples are left if Tom eats three of the twelve?", "en"),
        ("Wie geht es dir heute? Ich hoffe, dass alles gut ist.", "de"),
        ("El perro come carne todos los días porque tiene hambre.", "es"),
        ("你好，今天天气怎么样？我们去公园散步吧。", "zh"),
        ("Control\x00 characters\x07 are no reason\x1b not to read\ufdd0 the rest of it.", "en"),
        ("#### 18", ""),
        ("Yes.", ""),
        ("🙂" * 400, ""),
        ("", ""),
        (f"{GERMAN} {ENGLISH}", ""),
    ],
)
def test_a_language_is_told_or_left_open(text: str, language: str) -> None:
    assert language_of(text) == language


def test_languages_are_counted_by_role(tmp_path: Path) -> None:
    question, answer = (
        "How many apples are left if Tom eats three of twelve?",
        "Es bleiben neun Äpfel übrig, denke ich.",
    )
    rows = [{"question": f"{question} And if he eats {n}?", "answer": f"{answer} {n}"} for n in range(1040)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = {"base_model": "m", "training_data": [{"dataset": "d"}], "holdout_fraction": 0.0}
    tokenizer = make_tiny_tokenizer(tmp_path / "tokenizer")
    made = prepare(job_config(spec), tokenizer, {"d": path}, tmp_path / "out", lambda *_: None)
    sampled = sum(is_sampled(row) for row in range(1, 1041))
    assert made.train.languages == {"user": {"en": sampled}, "assistant": {"de": sampled}}
    assert sampled == 1003
