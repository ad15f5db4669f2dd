"""`ftf generate` and `ftf chat` against a gateway that repeats what it is asked."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetuneflow.cli.app import build_app
from tests.cli.conftest import Ftf
from tests.fakes.gateway import JOB, FakeGateway, Running

_INTERRUPTIBLE = """
import signal
# A shell starts the programs that it does not wait for without Ctrl-C, and they hand it on.
signal.signal(signal.SIGINT, signal.default_int_handler)
from finetuneflow.cli import main
main()
"""


def test_answer_is_printed_as_it_comes(ftf: Ftf, gateway: FakeGateway) -> None:
    """Phases are for the reader, and must not get into a file that the answer is redirected to."""
    result = ftf("generate", JOB, "--prompt", "one two", "--temperature", "0.5", "--seed", "7", "--stop", "END")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one two \n"
    assert "loading model" in result.stderr
    (request,) = gateway.requests("Generate")
    assert (request.model, request.temperature, request.seed) == (f"ft:{JOB}", 0.5, 7)
    assert list(request.stop) == ["END"]
    shown = json.loads(ftf("generate", "m", "--prompt", "one two", "--json").stdout)
    assert (shown["text"], shown["finish_reason"]) == ("one two ", "stop")
    assert shown["usage"]["completion_tokens"] == 2


def test_rows_are_asked_by_their_columns_or_a_template(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    """The file is input of other programs, which know these keys."""
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    written = [
        {"question": "first", "answer": "1"},
        {"instruction": "second", "input": "more", "output": "2", "system": "Be brief."},
        {"prompt": "third", "name": {"a": 1}},
    ]
    rows.write_text("".join(json.dumps(row) + "\n\n" for row in written))
    assert ftf("generate", "m", "--rows", rows, "--out", out).exit_code == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(lines[0]) == ["system_prompt", "user_prompt", "assistant_response", "ground_truth"]
    assert [line["user_prompt"] for line in lines] == ["first", "second\n\nmore", "third"]
    assert [line["assistant_response"] for line in lines] == ["first ", "second more ", "third "]
    assert [line["ground_truth"] for line in lines] == ["1", "2", None]
    assert [line["system_prompt"] for line in lines] == [None, "Be brief.", None]
    rows.write_text(json.dumps(written[2]))
    result = ftf("generate", "m", "--rows", rows, "--template", "Say {{ prompt }} of {{name}}")
    assert json.loads(result.stdout)["user_prompt"] == 'Say third of {"a": 1}'


@pytest.mark.parametrize(
    ("row", "template", "says"),
    [
        ('{"text": "a"}', None, "Row 1 of"),
        ("[1]", None, "is not a JSON object"),
        ("{", None, "is not JSON"),
        ('{"a": 1}', "{{ b }}", "has no column 'b'"),
        ('{"a": 1}', "{% if a %}x{% endif %}", "Jinja statement"),
    ],
)
def test_rows_that_cannot_be_asked_are_named(
    ftf: Ftf, gateway: FakeGateway, tmp_path: Path, row: str, template: str | None, says: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(row)
    result = ftf("generate", "m", "--rows", rows, *(["--template", template] if template else []))
    assert result.exit_code == 2
    assert says in result.stderr
    assert not gateway.requests("Generate")


def test_bad_rows_are_named_and_the_others_answered(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    """One bad row of ten thousand must neither cost the answers to all others nor go unnoticed."""
    gateway.too_long = "overlong"
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"a": "first"}\n{"b": "second"}\n{"a": "overlong"}\n{"a": "fourth"}\n{"b": "fifth"}\n')
    command = ("generate", "m", "--rows", rows, "--template", "Say {{ a }}", "--out", out)
    result = ftf(*command)
    assert result.exit_code == 2
    assert "cannot be answered: rows 2, 3 and 5." in result.stderr
    assert "rows.jsonl rows 2 and 5: has no column 'a'" in result.stderr
    assert "rows.jsonl row 3: The rendered prompt has 600 tokens" in result.stderr
    assert "The other 2 are answered" in result.stderr
    assert [json.loads(line)["user_prompt"] for line in out.read_text().splitlines()] == ["Say first", "Say fourth"]
    error = json.loads(ftf(*command, "--json").stderr)["error"]
    assert [each["field"] for each in error["violations"]] == [f"rows.jsonl row {n}" for n in (2, 3, 5)]
    gateway.calls.clear()
    rows.write_text('{"a": "first"}\n{"a": "second"}\n{"a": "fourth"}\n')
    assert ftf(*command).exit_code == 0
    assert [request.prompt for request in gateway.requests("Generate")] == ["Say second"]
    answers = [json.loads(line)["assistant_response"] for line in out.read_text().splitlines()]
    assert answers == ["Say first ", "Say second ", "Say fourth "]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_lost_server_leaves_what_was_answered(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    gateway.cut_answer_after = 1
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "first"}\n{"prompt": "second one"}\n')
    command = ("generate", "m", "--rows", rows, "--out", out)
    result = ftf(*command)
    assert result.exit_code == 3
    assert "GENERATION_LOST" in result.stderr
    gateway.cut_answer_after = -1
    assert ftf(*command).exit_code == 0
    assert [json.loads(line)["user_prompt"] for line in out.read_text().splitlines()] == ["first", "second one"]


@pytest.mark.parametrize("earlier", [None, "answers of another run\n"])
def test_interrupted_run_keeps_its_answers_and_is_continued(
    ftf: Ftf, gateway: FakeGateway, server: Running, tmp_path: Path, earlier: str | None
) -> None:
    """Hours of answers must not be lost by Ctrl-C, nor those of the run before."""
    gateway.silent_after = "silence"
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    prompts = ["first", "silence", *(f"row {number}" for number in range(3, 20)), "last silence"]
    rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    if earlier:
        out.write_text(earlier)
    command = ["generate", "m", "--rows", str(rows), "--out", str(out), "--max-new-tokens", "9"]
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert all(gateway.silences.acquire(timeout=60) for _ in range(2))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    written = tmp_path / "out.jsonl.part" if earlier else out
    answered = [json.loads(line)["user_prompt"] for line in written.read_text().splitlines()]
    # Eight rows are asked at a time, so at least 12 of 20 had an answer when the last one was asked.
    assert len(answered) >= 12
    assert answered == [prompt for prompt in prompts if prompt in answered]
    assert f"{len(answered)} rows are answered, in {written}" in said
    assert "The same command asks only" in said
    left = re.search(r"Not answered: rows ([^.]*)\.", said)
    assert left
    ends = [[int(number) for number in part.split(" to ")] for part in re.split(r", | and ", left[1])]
    named = {number for part in ends for number in range(part[0], part[-1] + 1)}
    assert named == {number for number, prompt in enumerate(prompts, 1) if prompt not in answered}
    assert not earlier or out.read_text() == earlier

    gateway.silent_after = ""
    gateway.calls.clear()
    result = ftf(*command)
    assert result.exit_code == 0, result.stderr
    assert f"{len(answered)} rows were answered by an earlier run" in result.stderr
    asked = [request.prompt for request in gateway.requests("Generate")]
    assert sorted(asked) == sorted(set(prompts) - set(answered))
    assert [json.loads(line)["user_prompt"] for line in out.read_text().splitlines()] == prompts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


def test_run_with_other_settings_starts_anew(ftf: Ftf, gateway: FakeGateway, tmp_path: Path) -> None:
    """A file must not have answers of two models."""
    gateway.cut_answer_after = 1
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "first"}\n{"prompt": "second one"}\n')
    assert ftf("generate", "m", "--rows", rows, "--out", out).exit_code == 3
    gateway.cut_answer_after = -1
    gateway.calls.clear()
    assert ftf("generate", "m", "--rows", rows, "--out", out, "--max-new-tokens", "5").exit_code == 0
    assert len(gateway.requests("Generate")) == 2


def test_lost_answer_is_an_error(ftf: Ftf, gateway: FakeGateway) -> None:
    """Half an answer with exit code 0 would be taken for a whole one."""
    gateway.cut_answer_after = 1
    result = ftf("generate", "m", "--prompt", "one two")
    assert result.exit_code == 3
    assert "GENERATION_LOST" in result.stderr


def test_prompt_and_rows_exclude_each_other(ftf: Ftf) -> None:
    assert ftf("generate", "m").exit_code == 2
    assert ftf("generate", "m", "--prompt", "a", "--out", "b").exit_code == 2


def test_chat_remembers_and_forgets(ftf: Ftf, gateway: FakeGateway) -> None:
    """A conversation that loses its history, or keeps what was reset, answers another question."""
    typed = "hello\n/system Be brief.\nagain\n/reset\n/help\nnew\n/quit\nnever\n"
    result = CliRunner().invoke(build_app(), ["chat", "m"], input=typed)
    assert result.exit_code == 0, result.output
    asked = gateway.requests("Generate")
    assert [[(each.role, each.content) for each in request.messages] for request in asked] == [
        [("user", "hello")],
        [("user", "hello"), ("assistant", "hello "), ("user", "again")],
        [("user", "new")],
    ]
    assert [request.system_prompt for request in asked] == ["", "Be brief.", "Be brief."]
    assert "again " in result.stdout
