"""Everything that is wrong or suspicious is found, counted, and named by row, before anything is paid."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import job_config
from engine.data.prepare import Prepared, examine
from engine.data.rows import RowProblem
from engine.data.validation import LISTED_OF_A_KIND, Report
from engine.errors import JobError
from tests.engine.data.broken_files import CASES, Case
from tests.tiny_models import make_tiny_tokenizer


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


def as_turns(row: dict[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]


QA_CHAT = [
    {"conversations": [{"from": "human", "value": f"What is {n}?"}, {"from": "gpt", "value": f"It is {n}."}]}
    for n in range(30)
]
QA = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]


@pytest.mark.parametrize("case", [case for case in CASES if "bomb" not in case.name], ids=lambda case: case.name)
def test_every_broken_file_has_the_right_verdict(tokenizer_dir: Path, case: Case, tmp_path: Path) -> None:
    """A file with a fault is never accepted, one without is never refused."""
    report, counted = look(tokenizer_dir, case.write(tmp_path))
    sound = not case.said and case.rows > 0 and case.name not in ("good.parquet", "bytes.parquet")
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


def test_every_row_is_counted_once(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise the counts of truncated, dropped and used rows in the report would not add up to the file."""
    rows = [
        *QA,
        QA[0],
        {"question": "why " * 300, "answer": "So."},
        {"question": "Long?", "answer": "word " * 2000},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "train": False}]},
        {"question": "Q?", "answer": ""},
    ]
    rows = [row if "messages" in row else {"messages": as_turns(row)} for row in rows]
    path = written(tmp_path / "a.jsonl", rows)
    _, counted = look(tokenizer_dir, path, holdout_fraction=0.2, hyperparameters={"max_length": 256})
    assert counted is not None
    both = counted.train, counted.eval
    assert sum(each.num_examples for each in both) == 41
    assert sum(each.num_truncated for each in both) == 1
    assert sum(each.num_dropped for each in both) == 2
    assert sum(each.num_cut_off for each in both) == 1
    dropped = sum(each.num_dropped + each.num_duplicates + each.num_left_out + each.num_too_long for each in both)
    assert 41 + dropped == len(rows)
    _, counted = look(
        tokenizer_dir, path, holdout_fraction=0.2, hyperparameters={"max_length": 256, "truncation": "drop"}
    )
    assert counted is not None
    both = counted.train, counted.eval
    assert sum(each.num_truncated + each.num_cut_off for each in both) == 0
    assert sum(each.num_too_long for each in both) == 2
    assert sum(each.num_examples + each.num_dropped + each.num_duplicates + each.num_left_out for each in both) == 43


def test_rows_that_a_template_writes_nothing_for_are_counted(tokenizer_dir: Path, tmp_path: Path) -> None:
    """A condition that is wrong takes a third of the table away, and nobody would see it go."""
    template = '{% if n > 9 %}{"question": {{ n | string | tojson }}, "answer": "Yes."}{% elif n > 4 %}[]{% endif %}'
    source = [{"dataset": "a", "template": template}]
    path = written(tmp_path / "a.jsonl", [{"n": n} for n in range(40)])
    report, counted = look(tokenizer_dir, path, training_data=source)
    assert report.verdict == "warnings"
    assert [(c.reason, c.count) for c in report.counts()] == [("TEMPLATE_WROTE_NOTHING", 10)]
    assert [problem.row for problem in report.problems] == list(range(1, 11))
    assert counted is not None
    assert (counted.train.num_examples, counted.train.num_left_out, counted.rows.unwritten) == (30, 10, 10)
    assert counted.rows.incomplete == 0
    source[0]["template"] = "{% if n > 99 %}{}{% endif %}"
    report, counted = look(tokenizer_dir, path, training_data=source)
    assert (report.verdict, counted) == ("refused", None)
    refusal = report.refusal()
    assert refusal is not None
    assert refusal.reason == "EMPTY_DATASET"
    assert "no row for which the template writes an example" in refusal.message


def test_a_row_counts_once_whatever_phases_and_weights_read_it(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise the report would count more faulty rows than a user can find in the file."""
    long = [{"question": f"Long {n}?", "answer": "word " * 2000} for n in range(4)]
    rows = [
        *QA,
        QA[0],
        *long,
        *({"question": f"why {n} " * 300, "answer": "So."} for n in range(3)),
        {"question": "Q?", "answer": ""},
    ]
    path = written(tmp_path / "a.jsonl", rows)
    phases = [
        {"display_name": "one", "num_epochs": 1.0, "training_data": [{"dataset": "a", "weight": 2.0}]},
        {"display_name": "two", "num_epochs": 1.0, "training_data": [{"dataset": "a"}]},
    ]
    for holdout in (0.0, 0.4):
        more = {"holdout_fraction": holdout, "hyperparameters": {"max_length": 256}}
        _, counted = look(tokenizer_dir, path, training_data=[], phases=phases, **more)
        assert counted is not None
        found, both = counted.rows, (counted.train, counted.eval)
        assert (found.incomplete, found.duplicates, found.truncated) == (1, 1, 4)
        assert (found.dropped, found.cut_off, found.unwritten) == (3, 3, 0)
        assert sum(each.num_dropped for each in both) == sum(each.num_cut_off for each in both) == 3
        assert (counted.train.num_left_out, counted.train.num_duplicates) == (1, 1)
    more["hyperparameters"]["truncation"] = "drop"
    _, counted = look(tokenizer_dir, path, training_data=[], phases=phases, **more)
    assert counted is not None
    assert counted.rows.too_long == counted.train.num_too_long + counted.eval.num_too_long == 7
    _, counted = look(tokenizer_dir, path, training_data=[{"dataset": "a", "weight": 2.0}], **more)
    assert counted is not None
    assert counted.rows.too_long == 7


def test_examples_that_a_template_repeats_are_no_rows(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise a user would search the table for duplicate rows, although the template repeats an example."""
    template = """[{"question": {{ question | tojson }}, "answer": {{ answer | tojson }}},
                   {"question": "Hello?", "answer": "Hello."}, {"question": "Hello?", "answer": "Hello."}]"""
    source = [{"dataset": "a", "template": template}]
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", QA), training_data=source)
    assert {(count.reason, count.count) for count in report.counts()} == {("DUPLICATE_EXAMPLE", 79)}
    assert [(p.row, p.message) for p in report.problems[:2]] == [
        (1, "makes an example that is a duplicate of another one of this row; dropped"),
        (2, "makes an example that is a duplicate of one of row 1; dropped"),
    ]
    assert counted is not None
    assert (counted.train.num_examples, counted.train.num_duplicates) == (41, 79)


def test_duplicates_beyond_those_that_are_listed_are_counted(tokenizer_dir: Path, tmp_path: Path) -> None:
    """A file of one row a million times is told of as what it is, with the first hundred named."""
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", [*QA, *[QA[0]] * 1500]))
    assert [(count.reason, count.count) for count in report.counts()] == [("DUPLICATE_ROW", 1500)]
    assert [problem.row for problem in report.problems] == list(range(41, 141))
    assert counted is not None
    assert (counted.train.num_examples, counted.train.num_duplicates) == (40, 1500)


def test_advice_holds_for_a_file_that_nobody_uploaded(tokenizer_dir: Path, tmp_path: Path) -> None:
    report, _ = look(tokenizer_dir, written(tmp_path / "a.jsonl", [*QA, {"question": "Q?", "answer": 7}]))
    refusal = report.refusal()
    assert refusal is not None
    assert refusal.advice.startswith("Correct the listed rows in the file, or remove them.")


@pytest.mark.parametrize("template", ['{"text": {{ nosuch | tojson }}}', '{"text": {{ question }}}'])
def test_a_fault_of_a_row_template_is_to_be_corrected_in_the_template(
    tokenizer_dir: Path, tmp_path: Path, template: str
) -> None:
    """Otherwise a user would correct and upload again a file that has no fault."""
    path = written(tmp_path / "a.jsonl", QA)
    source = {"dataset": "a", "template": template}
    report, _ = look(tokenizer_dir, path, training_data=[source])
    refusal = report.refusal()
    assert refusal is not None
    assert refusal.advice.startswith("Correct the row template")
    assert "upload" not in refusal.advice
    written(path, [*QA, "no object"])
    report, _ = look(tokenizer_dir, path, training_data=[source])
    refusal = report.refusal()
    assert refusal is not None
    assert refusal.advice.startswith("Correct the row template")
    assert "Correct the listed rows" in refusal.advice


def test_a_template_that_keeps_no_row_is_what_is_blamed(tokenizer_dir: Path, tmp_path: Path) -> None:
    source = {"dataset": "a", "template": "{% if question == 'x' %}{{ row | tojson }}{% endif %}"}
    path = written(tmp_path / "a.jsonl", QA)
    report, _ = look(tokenizer_dir, path, training_data=[source])
    refusal = report.refusal()
    assert refusal is not None
    assert refusal.reason == "EMPTY_DATASET"
    assert "Correct the template" in refusal.message


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


def test_a_few_incomplete_rows_are_left_out_and_named(tokenizer_dir: Path, tmp_path: Path) -> None:
    """52,000 rows are not refused for three empty answers, nor is anything silently not trained on."""
    rows = [*QA, {"question": "Q?", "answer": " "}, {"question": "Q?", "answer": None}, {"question": "", "answer": "A"}]
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", rows))
    assert report.verdict == "warnings"
    assert {(p.row, p.reason, p.severity) for p in report.problems} == {
        (41, "NO_ANSWER", "warning"),
        (42, "NO_ANSWER", "warning"),
        (43, "EMPTY_VALUE", "warning"),
    }
    assert all(problem.message.endswith("; dropped") for problem in report.problems)
    assert {(count.reason, count.severity, count.count) for count in report.counts()} == {
        ("NO_ANSWER", "warning", 2),
        ("EMPTY_VALUE", "warning", 1),
    }
    assert counted is not None
    assert (counted.train.num_examples, counted.train.num_left_out) == (40, 3)


def test_many_incomplete_rows_are_a_wrong_column(tokenizer_dir: Path, tmp_path: Path) -> None:
    """More than a tenth of the rows without an answer is a mapping to the wrong column, found before it is paid."""
    rows = [*QA[:18], *({"question": f"Q{n}?", "answer": ""} for n in range(3))]
    report, _ = look(tokenizer_dir, written(tmp_path / "a.jsonl", rows))
    assert report.verdict == "refused"
    assert report.num_errors == 3
    assert "3 of 21 rows are incomplete" in report.problems[0].message
    report, _ = look(tokenizer_dir, written(tmp_path / "b.jsonl", rows + QA[18:]))
    assert report.verdict == "warnings"


def test_a_row_that_hints_at_a_wrong_file_refuses_it_however_rare(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise a file whose few wrong rows show that it is damaged, or the wrong one, would be trained."""
    for row in ({"query": "Q?"}, {"question": "Q?", "answer": 7}, {"text": "A poem"}):
        report, _ = look(tokenizer_dir, written(tmp_path / "a.jsonl", [*QA * 10, row]))
        assert report.verdict == "refused", row


def test_conversations_are_cut_to_what_is_asked_and_answered(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Logs of chats begin with greetings and end with thanks; the rows between are good."""
    asked, answered = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}
    rows = [
        {"conversations": [answered, asked | {"value": f"Why {n}?"}, answered, asked]} if n < 15 else QA_CHAT[n]
        for n in range(30)
    ]
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", rows))
    assert report.verdict == "warnings"
    assert {(c.reason, c.count) for c in report.counts()} == {("LEADING_TURNS", 15), ("TRAILING_TURNS", 15)}
    assert counted is not None
    assert counted.train.num_examples == 30
    assert counted.train.roles == {"user": 30, "assistant": 30}
    assert counted.train.num_left_out == 0
    assert counted.rows.turns_cut == 15


def test_a_template_may_refuse_some_conversations_but_not_all(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Many models take no two questions in a row; nine hundred and ninety other conversations are trained on."""
    strict = (
        "{% for m in messages %}{% if loop.previtem and loop.previtem.role == m.role %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.role + ': ' + m.content + '<|im_end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    twice = {"conversations": [{"from": "human", "value": "Hello?"}, *QA_CHAT[0]["conversations"]]}
    path = written(tmp_path / "a.jsonl", [twice, *QA_CHAT])
    report, counted = look(tokenizer_dir, path, chat_template=strict)
    assert [(p.row, p.reason, p.severity) for p in report.problems] == [(1, "TEMPLATE_FAILED", "warning")]
    assert counted is not None
    assert (counted.train.num_examples, counted.train.num_left_out) == (30, 1)
    for never in ("{{ raise_exception('never') }}", "{% for m in mesages %}{{ m.content }}{% endfor %}"):
        report, _ = look(tokenizer_dir, path, chat_template=never)
        assert report.verdict == "refused"
        assert (report.problems[-1].row, report.problems[-1].reason) == (0, "TEMPLATE_FAILED")


def test_a_conversation_of_thousands_of_turns_is_read_to_its_end(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise a user would wait minutes for tokens beyond max_length, which are truncated anyway."""
    turns = [turn for n in range(2000) for turn in QA_CHAT[n % 30]["conversations"]]
    report, counted = look(tokenizer_dir, written(tmp_path / "a.jsonl", [{"conversations": turns}]))
    assert {problem.reason for problem in report.problems} <= {"TRUNCATED", "OUTLIER_LENGTH"}
    assert counted is not None
    assert counted.train.num_truncated == 1


def test_warnings_without_end_hide_no_error(tokenizer_dir: Path, tmp_path: Path) -> None:
    """The list has its limits; what refuses a job is named all the same."""
    report = Report()
    for kind in range(20):
        for row in range(LISTED_OF_A_KIND):
            report.add("training_data[0]", RowProblem(row, "", f"KIND_{kind}", "suspicious"), "warning")
    report.add("training_data[1]", RowProblem(1, "", "NOT_JSON", "not JSON"))
    with pytest.raises(JobError, match="not JSON"):
        report.refuse()


def test_a_file_that_is_wrong_as_a_whole_is_refused_for_that(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise a user would split the long first row of a decompression bomb, which is still refused."""
    case = next(case for case in CASES if case.name == "bomb.jsonl.gz")
    report, counted = look(tokenizer_dir, case.write(tmp_path))
    assert counted is None
    refusal = report.refusal()
    assert refusal is not None
    assert refusal.reason == "DECOMPRESSION_BOMB"
    with pytest.raises(JobError) as refused:
        report.refuse()
    assert "rows have errors" not in refused.value.message


def test_a_refusal_ends_as_a_sentence_does() -> None:
    """Messages that ask are not closed with another full stop."""
    for said, shown in (("did you mean Age?", "did you mean Age?"), ("is empty", "is empty."), ("So.", "So.")):
        report = Report()
        report.add("training_data[0]", RowProblem(3, "", "WRONG", said))
        with pytest.raises(JobError) as refused:
            report.refuse()
        assert refused.value.message == f"training_data[0] row 3: {shown}"


def test_what_is_wrong_is_said_of_the_right_place(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Columns as the file names them, and the column where the bracket is missing."""
    report, _ = look(tokenizer_dir, written(tmp_path / "a.jsonl", [*QA_CHAT, {"conversations": []}]))
    assert report.problems[0].message.startswith("column conversations has no turns")
    path = tmp_path / "b.jsonl"
    row = '{"question": "Q", "answer": "A"'
    path.write_text(f"{row}}}\n{row}  \n")
    report, _ = look(tokenizer_dir, path)
    assert (report.problems[0].row, report.problems[0].message.split(" at ")[1]) == (2, f"column {len(row) + 1}")
    path = tmp_path / "c.csv"
    path.write_text("question,answer\nQ,A\nQ\n")
    report, _ = look(tokenizer_dir, path)
    assert report.problems[0].message.startswith("has 1 cell but the header has 2")
