"""Text from files and servers is shown, and never controls the terminal."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text

from finetuneflow.cli.console import SafeConsole
from finetuneflow.cli.session import json_line, print_rows, speed
from finetuneflow.v1 import dataset_pb2
from tests.cli.conftest import Ftf

HOSTILE = "a\x1b[2J\x07\x7f\x9b\u202e\u2066\udc80:warning:[red]"
SHOWN = r"a\u001b[2J\u0007\u007f\u009b\u202e\u2066\udc80:warning:[red]"


@pytest.mark.parametrize("terminal", [True, False])
def test_control_characters_are_shown_not_obeyed(terminal: bool) -> None:
    """A row of somebody's data set clears the screen, or turns a refusal into something that reads otherwise."""
    console = SafeConsole(file=io.StringIO(), width=200, force_terminal=terminal, color_system=None)
    console.print(HOSTILE, style="red")
    console.print(Text("text of \x1b]0;title and \u202e"))
    print_rows(console, ["COLUMN", "B"], [[HOSTILE, "a\tb\nc"]])
    assert isinstance(console.file, io.StringIO)
    printed, said, header, row = console.file.getvalue().splitlines()
    assert printed == SHOWN
    assert said == r"text of \u001b]0;title and \u202e"
    assert header.split() == ["COLUMN", "B"]
    assert row.split() == [SHOWN, r"a\tb\nc"]


def test_lines_tabs_and_other_scripts_stay_as_they_are() -> None:
    """A preview shows text as it is: lines, accents, scripts that run from right to left, emoji of several parts."""
    text = "one\ntwo: 道 élan שלום 👩\u200d🚀"
    console = SafeConsole(file=io.StringIO(), width=200)
    console.print(text)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == text + "\n"


def test_a_terminal_that_shows_json_obeys_nothing_either() -> None:
    """And a program reads what the name was."""
    name = HOSTILE.replace("\udc80", "")
    line = json_line(dataset_pb2.Dataset(filename=name))
    assert line.isprintable()
    assert json.loads(line)["filename"] == name


def test_a_name_on_the_server_commands_no_terminal(ftf: Ftf, gateway: Any, tmp_path: Path) -> None:
    """Names are what other people chose. Refusals and wrong usage go to stderr the same way."""
    rows = tmp_path / "rows\x1b[2J.jsonl"
    for arguments in (
        ("jobs", "get", "job_\x1b[2J"),
        ("validate", rows, "-m", "m"),
        ("validate", rows, "-m", "m", "--json"),
        ("datasets", "stats", rows, "-m", "m"),
    ):
        done = ftf(*arguments)
        assert done.exit_code == 2, arguments
        assert "\x1b" not in done.output
        # The client's own words on files quote them as Python does.
        assert r"\u001b" in done.stderr or r"\x1b" in done.stderr
    rows.write_text('{"question": "Why?", "answer": "So."}\n')
    done = ftf("datasets", "upload", rows)
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    assert "\\u001b[2J" in done.output


@pytest.mark.parametrize(("number", "shown"), [(12345.6, "12,346"), (10, "10"), (5.24, "5.2"), (0.0431, "0.043")])
def test_a_slow_training_is_not_shown_as_one_that_stands_still(number: float, shown: str) -> None:
    """On a CPU, a model of billions of parameters trains less than one token a second."""
    assert speed(number) == f"{shown} tokens/s"
