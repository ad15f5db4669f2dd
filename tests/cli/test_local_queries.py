"""`ftf validate`, `ftf datasets preview|stats`: with a server, and on this machine without one."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from rich.console import Console

from finetuneflow.cli.exits import report
from finetuneflow.errors import InvalidArgument, Violation
from tests.cli.conftest import Ftf
from tests.tiny_models import make_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


def here(
    tiny: Path, *arguments: object, environment: Mapping[str, str] = MappingProxyType({}), encoding: str = "utf-8"
) -> subprocess.CompletedProcess[str]:
    """A process of its own, with nothing to ask."""
    own = {"FTF_MODELS": json.dumps({"tiny": str(tiny)}), "FTF_HOME": str(tiny / "home"), "PATH": ""}
    return subprocess.run(
        [sys.executable, "-m", "finetuneflow.cli", *map(str, arguments)],
        env=own | {"PYTHONPATH": ":".join(sys.path), **environment},
        capture_output=True,
        encoding=encoding,
        check=False,
    )


def test_tuned_model_needs_the_server_that_trained_it(tiny: Path, tmp_path: Path) -> None:
    """A check that takes the base model for it would be about another job."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "a", "answer": "b"}\n' * 20)
    done = here(tiny, "validate", rows, "-m", "ft:ftjob_1", environment={"FTF_ADDRESS": "127.0.0.1:1"})
    assert done.returncode == 3, done.stderr
    assert "127.0.0.1:1" in done.stderr
    done = here(tiny, "datasets", "preview", rows, "-m", "ft:ftjob_1")
    assert done.returncode == 2, done.stderr
    assert "Only the server that trained it knows its base model" in done.stderr


def test_a_file_is_validated_without_a_server(tiny: Path, tmp_path: Path) -> None:
    """The first thing one does with a file, before anything is installed on any machine; scripts read its exit code."""
    rows = tmp_path / "rows.csv"
    rows.write_text("age,goal\n25,strength\n31,rest\n")
    template = tmp_path / "rows.jinja"
    template.write_text('{"question": "At {{ age }}?", "answer": {{ goal | tojson }}}')
    done = here(tiny, "validate", rows, "-m", "tiny", "--template", template)
    assert done.returncode == 0, done.stderr
    assert "The job would run" in done.stdout
    # One of the two rows is held out.
    assert "for 3 epochs" in done.stdout
    assert "nothing held out" not in done.stdout
    template.write_text("")
    done = here(tiny, "validate", rows, "-m", "tiny", "--template", template, "--json")
    assert done.returncode == 2, done.stdout
    assert "spec.training_data[0].template" in done.stdout + done.stderr
    done = here(tiny, "validate", rows, "-m", "tiny", "--map", "question=age", "--map", "answer=goals", "--json")
    assert done.returncode == 2, done.stdout
    report = json.loads(done.stdout)["report"]
    assert report["verdict"] == "VALIDATION_VERDICT_REFUSED"
    assert "NO_ANSWER" in {problem["reason"] for problem in report["validation"]["problems"]}
    done = here(tiny, "validate", rows, "-m", "tinny", "--json")
    assert (done.returncode, json.loads(done.stderr)["error"]["reason"]) == (2, "MODEL_NOT_FOUND")


def test_a_job_file_is_validated_without_a_server(tiny: Path, tmp_path: Path) -> None:
    """Rows, settings and machine in one report, and what would be better; a script stops where a job would fail."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(60)))
    job = tmp_path / "job.toml"
    job.write_text('base_model = "tiny"\ntraining_data = "rows.jsonl"\n[hyperparameters]\nlearning_rate = 0.5\n')
    done = here(tiny, "validate", "--config", job, "--set", "lora.target_modules=['q_porj']", "--json")
    assert done.returncode == 2, done.stderr
    found = json.loads(done.stdout)
    assert [each["reason"] for each in found["report"]["findings"] if "violations" in each] == ["UNKNOWN_MODULE"]
    better = {each["field"]: each for each in found["report"]["improvements"]}
    assert better["hyperparameters.learning_rate"]["suggested"] == "0.0002"
    assert found["resolved_spec"]["training_data"] == [{"dataset": str(rows), "weight": 1.0}]
    assert float(found["estimate"]["duration_seconds"]) > 0


def test_an_estimate_and_a_validation_of_the_same_job_say_the_same_time(tiny: Path, tmp_path: Path) -> None:
    """Two answers to one question are none."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "What?", "answer": "{"word " * (n % 23)} {n}"}}\n' for n in range(300)))
    tried = here(tiny, "validate", rows, "-m", "tiny", "--json", "--set", "hyperparameters.eval_steps=10")
    assert tried.returncode == 0, tried.stderr
    found = json.loads(tried.stdout)["estimate"]
    told = here(tiny, "estimate", rows, "-m", "tiny", "--local", "--json", "--set", "hyperparameters.eval_steps=10")
    assert told.returncode == 0, told.stderr
    estimate = json.loads(told.stdout)["estimate"]
    assert estimate["num_tokens"] == found["num_tokens"]
    assert float(estimate["duration_seconds"]) == pytest.approx(float(found["duration_seconds"]))


def test_a_preview_marks_what_is_trained(tiny: Path, tmp_path: Path) -> None:
    """In a pipe colours are gone; the trained text is still told apart."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": "So."}\n{"question": "Why?"}\n')
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny")
    assert done.returncode == 0, done.stderr
    assert "trained: 'So.<|im_end|>'" in done.stdout
    assert "\nWarning: row 2: has no answer" in done.stdout
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny", "--rows", 1, "--json")
    row = json.loads(done.stdout)
    assert [label for label in row["labels"] if label >= 0] == row["input_ids"][row["trained_spans"][0]["start"] :][:-1]


@pytest.mark.long
def test_a_preview_of_a_row_that_refuses_a_job_is_no_success(tiny: Path, tmp_path: Path) -> None:
    """A script that previews before it trains stops where `ftf validate` stops; a warning does not stop it."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": "So."}\n{"question": "How?", "answer": 7}\n')
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny")
    assert done.returncode == here(tiny, "validate", rows, "-m", "tiny").returncode == 2
    assert "\nRefused: row 2: column answer is a number" in done.stdout
    assert here(tiny, "datasets", "preview", rows, "-m", "tiny", "--rows", 1).returncode == 0
    assert here(tiny, "datasets", "preview", rows, "-m", "tiny", "--row", 2, "--json").returncode == 2


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tiny: Path, tmp_path: Path) -> None:
    """The same sentence three times, with a report between, reads as three faults."""
    file = tmp_path / "rows.parquet"
    file.write_bytes(b"PAR1 and nothing else")
    done = here(tiny, "validate", file, "-m", "tiny")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (2, "The job would be refused.")
    assert lines[-2].startswith("Refused: rows.parquet cannot be read as Parquet")
    assert (done.stdout + done.stderr).count("UNREADABLE_FILE") == 1


def test_a_warning_about_a_row_is_marked_as_one(tiny: Path, tmp_path: Path) -> None:
    """In a pipe there is no colour that tells a warning from what refuses the job."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "{n % 19}?", "answer": "It is {n % 19}."}}\n' for n in range(20)))
    done = here(tiny, "validate", rows, "-m", "tiny")
    assert done.returncode == 0
    (line,) = (line for line in done.stdout.splitlines() if "[DUPLICATE_ROW]" in line)
    assert line.startswith("Warning: row 20: ")


@pytest.mark.long
def test_a_warning_takes_no_place_of_a_row_in_a_preview(tiny: Path, tmp_path: Path) -> None:
    """Otherwise the one row that was asked for is hidden behind its own warning."""
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": "system", "content": "A."}, {"role": "system", "content": "B."}]
    turns += [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    rows.write_text((json.dumps({"messages": turns}) + "\n") * 3)
    for first, count in ((1, 2), (3, 1)):
        shown = here(tiny, "datasets", "preview", rows, "-m", "tiny", "--row", first, "--rows", count).stdout
        assert shown.count("JOINED_SYSTEM_TURNS") == shown.count("trained: 'Because.") == count, shown


@pytest.mark.long
def test_a_preview_shows_other_scripts_as_they_are(tiny: Path, tmp_path: Path) -> None:
    """A character of several tokens looked broken, and so the data did."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": "道 (みち) 🛣️ élan"}\n')
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny")
    assert "trained: '道 (みち) 🛣️ élan<|im_end|>'" in done.stdout
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny", "--json")
    row = json.loads(done.stdout)
    assert len(row["tokens"]) == len(row["input_ids"])
    assert "".join(row["tokens"]) == row["text"].rstrip("\n") or "".join(row["tokens"]) == row["text"]


def test_a_row_that_is_not_there_is_no_success(tiny: Path, tmp_path: Path, ftf: Ftf) -> None:
    """A script that looks at row after row would never end."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": "So."}\n')
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny", "--row", 5000, "--json")
    assert (done.returncode, done.stdout) == (2, "")
    (violation,) = json.loads(done.stderr)["error"]["violations"]
    assert violation == {"field": "--row", "description": f"{rows} has no row 5,000 or later."}


def test_what_rows_say_commands_no_terminal(tiny: Path, tmp_path: Path) -> None:
    """Neither in a preview nor in a refusal: text that clears the screen, or turns the direction of writing."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "\\u001b[2J \\u202e?", "answer": "\\u009bSo."}\n')
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny")
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace("\n", "").isprintable()
    assert r"\u001b[2J \u202e?" in done.stdout
    rows.write_text('{"\\u001b[2Jkey": "x"}\n')
    done = here(tiny, "datasets", "stats", rows, "-m", "tiny")
    assert done.returncode == 2
    assert (done.stdout + done.stderr).replace("\n", "").isprintable()
    assert r"\u001b[2Jkey" in done.stdout + done.stderr


def test_statistics_of_nothing_are_a_refusal(tiny: Path, tmp_path: Path) -> None:
    """A table of zeros says nothing of why."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"{n}?", "answer": ""}) + "\n" for n in range(5)))
    done = here(tiny, "datasets", "stats", rows, "-m", "tiny")
    assert done.returncode == 2
    assert "answer" in done.stdout + done.stderr


def test_a_gpu_is_asked_about_with_its_memory(tiny: Path) -> None:
    """Which option is missing, in the words of the command line."""
    done = here(tiny, "recommend", "-m", "tiny", "--gpu", "RTX 4090")
    assert done.returncode == 2
    assert "--vram" in done.stderr


def test_a_server_looks_at_what_was_uploaded(ftf: Ftf, gateway: Any, tmp_path: Path) -> None:
    """A dataset's id needs no file here; with --address a file is uploaded first."""
    result = ftf("datasets", "stats", "ds_1", "--model", "m")
    assert result.exit_code == 2, "a job on it would be refused"
    assert "12,345" in result.output
    assert "row 17: has no answer" in result.output
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Why?", "answer": "So."}\n')
    result = ftf("validate", rows, "--model", "m", "--json", "--map", "question=q", "--max-length", 64)
    assert result.exit_code == 0
    report = json.loads(result.output)["report"]
    assert report["validation"]["problems"][0]["row"] == "17"
    (request,) = gateway.requests("PreflightFineTuningJob")
    assert request.spec.training_data[0].mapping == {"question": "q"}
    assert request.spec.hyperparameters.max_length == 64
    assert ftf("validate", rows, "--model", "m", "--set", "hyperparameters.num_epochs=100").exit_code == 2
    assert ftf("validate", "nowhere.jsonl", "--model", "m").exit_code == 2


def test_what_is_wrong_with_every_row_is_said_once(tiny: Path, tmp_path: Path) -> None:
    """A table without a mapping has the same wrong in each of its rows, in a long line."""
    table = tmp_path / "gym.csv"
    table.write_text("Age,BMI\n" + "".join(f"{20 + n},{20 + n / 10}\n" for n in range(60)))
    done = here(tiny, "validate", table, "-m", "tiny")
    # In what refuses the job, which stands first and last, and once beside all of its rows.
    assert done.stdout.count("none of the known columns") == 3, done.stderr
    assert "rows 2, 3, 4 and 57 more: " in done.stdout
    assert "60 rows have errors: 60 UNKNOWN_FORMAT." in done.stdout


def test_advice_about_columns_can_be_typed_and_written(tiny: Path, tmp_path: Path) -> None:
    """Who reads `question = "…"` knows neither the option nor the field that takes it."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f'{{"prompt text": "{n}?", "reply": "It is {n}."}}\n' for n in range(20)))
    refused = here(tiny, "validate", file, "-m", "tiny")
    assert refused.returncode == 2
    assert "fields mapping.question and mapping.answer of the dataset" in refused.stdout
    assert "field mapping.text of the dataset" in refused.stdout
    question, answer, text = dict.fromkeys(re.findall(r"--map (\w+)=COLUMN", refused.stdout))
    assert here(tiny, "validate", file, "-m", "tiny", "--map", f"{text}=reply").returncode == 0
    options = ["--map", f"{question}=prompt text", "--map", f"{answer}=reply"]
    assert here(tiny, "validate", file, "-m", "tiny", *options).returncode == 0
    job = tmp_path / "job.toml"
    job.write_text(
        f'base_model = "tiny"\n[[training_data]]\ndataset = "{file}"\n'
        f'mapping.{question} = "prompt text"\nmapping.{answer} = "reply"\n'
    )
    assert here(tiny, "validate", "--config", job).returncode == 0


def test_what_refuses_stands_first_and_last(tiny: Path, tmp_path: Path) -> None:
    """It stood behind harmless duplicates, and the last line did not say what it was."""
    rows = [{"question": "Why?", "answer": "So."}] * 30 + [{"question": 7, "answer": "So."}] * 20
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = here(tiny, "validate", file, "-m", "tiny")
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (2, "The job would be refused.")
    refusal = lines[0]
    assert lines[-2] == refusal
    for part in ("Refused: training_data[0] row 31: ", "a number", "20 rows have errors: 20 WRONG_TYPE.", "[BAD_DATA]"):
        assert part in refusal
    wrong, repeated = (next(i for i, line in enumerate(lines) if f"[{kind}]" in line)
                       for kind in ("WRONG_TYPE", "DUPLICATE_ROW"))  # fmt: skip
    assert wrong < repeated


ALONE = ["validate", "--set", "holdout_fraction=0"]
"""Arguments for a file of one row, from which no row can be held out."""


@pytest.mark.long
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_encoding_without_a_character_ends_no_command(tiny: Path, tmp_path: Path, encoding: str) -> None:
    """A traceback stood in the middle of the output, and a script was told that the work had failed."""
    text = "漢 ö 😀 \u2028"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": text, "answer": text}) + "\n")
    given = {"PYTHONIOENCODING": encoding}
    for command in (["datasets", "preview"], ["datasets", "preview", "--tokens"], ["datasets", "stats"], ALONE):
        done = here(tiny, *command, rows, "-m", "tiny", environment=given, encoding=encoding)
        assert done.returncode == 0, done.stderr
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny", environment=given, encoding=encoding)
    assert "\\u6f22" in done.stdout and "\\ud83d\\ude00" in done.stdout
    done = here(tiny, "datasets", "preview", rows, "-m", "tiny", "--json", environment=given, encoding=encoding)
    assert text in json.loads(done.stdout)["text"]


@pytest.mark.parametrize("command", [["validate"], ["datasets", "stats"], ["datasets", "preview"]])
def test_a_name_that_is_not_utf8_is_refused_in_a_sentence(tiny: Path, tmp_path: Path, command: list[str]) -> None:
    file = os.fsencode(tmp_path) + b"/caf\xe9.jsonl"
    Path(os.fsdecode(file)).write_text('{"question": "Why?", "answer": "So."}\n')
    done = here(tiny, *command, os.fsdecode(file), "-m", "tiny")
    assert done.returncode == 2
    assert "caf\ufffd.jsonl' is not UTF-8; rename the file" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
def test_a_preview_is_written_with_the_template_of_the_job(tiny: Path, tmp_path: Path) -> None:
    rows, template = tmp_path / "rows.jsonl", tmp_path / "chat.jinja"
    rows.write_text('{"question": "Why?", "answer": "So."}\n')
    template.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
                        "{% if add_generation_prompt %}[assistant]{% endif %}")  # fmt: skip
    shown = here(tiny, "datasets", "preview", rows, "-m", "tiny", "--chat-template", template)
    assert "[user] Why?<|im_end|>[assistant] So." in shown.stdout, shown.stderr
    for command in (["datasets", "stats"], ALONE):
        done = here(tiny, *command, rows, "-m", "tiny", "--chat-template", template)
        assert done.returncode == 0, done.stderr


def test_a_refusal_says_once_what_its_rows_share() -> None:
    """The same where a call was refused: the first row is in the message, the others need only their numbers."""
    same = [Violation(f"training_data[0] row {n}", f"row {n}: has no answer [MISSING]") for n in range(2, 8)]
    other = Violation("training_data[0] row 9", "row 9: is empty [EMPTY]")
    console = Console(file=io.StringIO(), width=200)
    report(InvalidArgument("row 2: has no answer. In all 7 rows.", violations=[*same, other]), console)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        "row 2: has no answer. In all 7 rows.",
        "  training_data[0] rows 2, 3, 4 and 3 more: the same",
        "  training_data[0] row 9: is empty [EMPTY]",
    ]
