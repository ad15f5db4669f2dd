"""Scores of files of answers, from the command line, against the reference libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu

EXPECTED = [f"The number {n} comes after {n - 1} and before {n + 1}, as everybody knows very well." for n in range(12)]
GOOD = [text.replace("everybody", "each child") for text in EXPECTED]
BAD = ["No idea at all, sorry." for _ in EXPECTED]


def _write(path: Path, answers: list[str]) -> Path:
    rows = (
        {"system_prompt": "", "user_prompt": f"Where is {n}?", "assistant_response": answer, "ground_truth": right}
        for n, (answer, right) in enumerate(zip(answers, EXPECTED, strict=True))
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _score(*arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "finetuneflow.cli", "score", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_scores_of_a_file_are_those_of_the_reference_libraries(tmp_path: Path) -> None:
    """Answers made elsewhere are judged by the same figures as those of an evaluation."""
    good = _write(tmp_path / "good.jsonl", GOOD)
    found = {row["metric"]: row for row in map(json.loads, _score(str(good), "--json").splitlines())}
    assert list(found) == ["token_f1", "rouge_1", "rouge_2", "rouge_l", "bleu", "chrf"]
    scorer = RougeScorer(["rougeL"])
    rouge = sum(scorer.score(right, given)["rougeL"].fmeasure for right, given in zip(EXPECTED, GOOD, strict=True))
    assert found["rouge_l"]["value"] == pytest.approx(rouge / len(GOOD))
    assert found["bleu"]["value"] == pytest.approx(corpus_bleu(GOOD, [EXPECTED]).score)
    assert found["bleu"]["value_low"] <= found["bleu"]["value"] <= found["bleu"]["value_high"]
    assert "gain" not in found["bleu"]


def test_two_files_are_compared(tmp_path: Path) -> None:
    good, bad = _write(tmp_path / "good.jsonl", GOOD), _write(tmp_path / "bad.jsonl", BAD)
    row = json.loads(_score(str(good), "--against", str(bad), "--metric", "rouge_1", "--json"))
    assert (row["conclusion"], row["num_improved"], row["num_worsened"]) == ("BETTER", 12, 0)
    shown = _score(str(good), "--against", str(bad)).splitlines()
    assert shown[0].split("\t")[:2] == ["METRIC", "VALUE"] and shown[1].endswith("better")


def test_files_that_cannot_be_used_are_refused_with_the_row(tmp_path: Path) -> None:
    good = _write(tmp_path / "good.jsonl", GOOD)
    other = tmp_path / "other.jsonl"
    other.write_text('{"assistant_response": "x", "ground_truth": "y"}\n{"assistant_response": "x"}\n')
    assert "row 2 is no object with assistant_response and ground_truth" in _score(str(other), code=2)
    other.write_text('{"assistant_response": "x", "ground_truth": "y"}\n')
    assert "have different prompts" in _score(str(good), "--against", str(other), code=2)
    assert "there is no such metric" in _score(str(good), "--metric", "rogue", code=2)
