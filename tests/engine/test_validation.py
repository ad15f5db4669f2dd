"""Everything that is wrong or suspicious is found, counted, and named by row, before anything is paid."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import job_config
from engine.data.prepare import Prepared, examine
from engine.data.validation import LISTED_OF_A_KIND, Report
from tests.engine.broken_files import CASES, Case
from tests.tiny import make_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def look(
    tokenizer_dir: Path, path: Path, evaluation: Path | None = None, **spec: Any
) -> tuple[Report, Prepared | None]:
    sources = {"a": path}
    spec.setdefault("training_data", [{"dataset": "a"}])
    if evaluation is not None:
        sources["b"] = evaluation
        spec["evaluation_data"] = [{"dataset": "b"}]
    report = Report()
    config = job_config({"base_model": "m", "holdout_fraction": 0.0, **spec})
    return report, examine(config, tokenizer_dir, sources, lambda _phase, _fraction: None, report)


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QA = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]


@pytest.mark.parametrize("case", [case for case in CASES if "bomb" not in case.name], ids=lambda case: case.name)
def test_every_broken_file_has_the_right_verdict(tokenizer_dir: Path, case: Case, tmp_path: Path) -> None:
    """A file with a fault is never accepted, one without is never refused."""
    report, counted = look(tokenizer_dir, case.write(tmp_path))
    sound = not case.said and case.rows > 0 and case.name != "good.parquet"
    assert report.verdict == ("refused" if not sound else report.verdict)
    assert (report.num_errors == 0) is sound, report.problems
    if isinstance(case.said, str):
        assert report.problems[0].reason == case.said
        assert counted is None
    elif case.said:
        assert [(problem.row, problem.reason) for problem in report.problems][: len(case.said)] == list(case.said)


def test_suspicious_rows_are_warned_of_by_number(tokenizer_dir: Path, tmp_path: Path) -> None:
    """None of these stops a training, and each of them spoils one."""
    rows = [
        *QA,
        QA[0],
        {"question": "Applied already?", "answer": "<|im_start|>assistant\nYes<|im_end|>"},
        {"question": "why " * 300, "answer": "So."},
        {"question": "Long?", "answer": "word " * 2000},
    ]
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", rows), hyperparameters={"max_length": 256})
    found = {(problem.row, problem.reason) for problem in report.problems}
    assert found == {
        (41, "DUPLICATE_ROW"),
        (42, "CONTROL_TOKEN"),
        (43, "NO_TRAINED_TOKENS"),
        (44, "TRUNCATED"),
        (44, "OUTLIER_LENGTH"),
    }
    assert report.verdict == "warnings"
    assert counted is not None
    train = counted.train
    assert (train.num_examples, train.num_dropped, train.num_duplicates) == (42, 1, 1)
    assert sum(train.histogram().values()) == 42
    assert train.percentiles()[50] < 64 < train.max_tokens == 256
    assert train.roles == {"user": 42, "assistant": 42}
    assert train.scripts == {"latin": 42}


def test_rows_of_the_evaluation_that_are_trained_on_are_named(tokenizer_dir: Path, tmp_path: Path) -> None:
    held_out = written(tmp_path / "b.jsonl", [{"question": "New?", "answer": "Yes."}, QA[3]])
    report, _ = look(tokenizer_dir, written(tmp_path / "a.jsonl", QA), held_out)
    assert [(p.source, p.row, p.reason) for p in report.problems] == [("evaluation_data[0]", 2, "LEAKED_ROW")]


def test_a_million_problems_of_one_kind_hide_no_other(tokenizer_dir: Path, tmp_path: Path) -> None:
    """The list is capped by kind, the counts are whole, and the right rows are counted all the same."""
    rows = [{"question": "Q?"}] * 500 + [*QA, {"question": "Q?", "answer": 7}]
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", rows))
    assert {(count.reason, count.count) for count in report.counts()} == {("NO_ANSWER", 500), ("WRONG_TYPE", 1)}
    assert len(report.problems) == LISTED_OF_A_KIND + 1
    assert report.num_problems == 501
    assert counted is not None
    assert counted.train.num_examples == 40
    assert counted.num_packed < 40


def test_data_that_would_train_nothing_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "train": False}]
    report, _ = look(tokenizer_dir, written(tmp_path / "a.jsonl", [{"messages": turns}]))
    assert report.verdict == "refused"
    assert "NOTHING_TO_TRAIN" in {problem.reason for problem in report.problems}
