"""`ftf generate` and `ftf chat` against a gateway that repeats what it is asked."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetuneflow.cli.app import build_app
from tests.cli.conftest import Ftf
from tests.fakes.gateway import JOB, FakeGateway


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
