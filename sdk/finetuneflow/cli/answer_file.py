"""The file of answers that `ftf generate --rows` writes, which a later run of the same command completes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


class AnswerFile:
    """Answers, one JSON object a line.

    While a run lasts they are in `<name>.part`. `<name>.unfinished` has the settings of a run that has left rows
    unanswered: only a run with the same ones completes it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """`settings` are what decides answers, apart from the rows; they become JSON."""
        self.path = path
        self._settings = json.dumps(settings, sort_keys=True)
        self._part = path.with_name(f"{path.name}.part")
        self._mark = path.with_name(f"{path.name}.unfinished")
        self._replaces = not path.exists()
        """True if the file has nothing but what this run completes."""

    def begin(self) -> list[dict[str, Any]]:
        """Returns the answers of the run that this one completes. Raises OSError."""
        earlier: list[dict[str, Any]] = []
        if self._mark.is_file() and self._mark.read_text("utf-8") == self._settings:
            if self._part.is_file():
                earlier = _lines(self._part)
            elif self.path.is_file():
                earlier = _lines(self.path)
                self._replaces = True
        self._mark.write_text(self._settings, "utf-8")
        _write(self._part, earlier)
        return earlier

    def add(self, line: Mapping[str, Any]) -> None:
        """Appends an answer, so that it is there if the process is killed."""
        with self._part.open("a", encoding="utf-8") as file:
            file.write(_json(line))

    @property
    def path_if_early(self) -> Path:
        """The file that has the answers of a run that ends early: `<name>.part` if the file itself has answers of
        another run, which stay."""
        return self.path if self._replaces else self._part

    def end(self, lines: Iterable[Mapping[str, Any]], *, early: bool, complete: bool) -> None:
        """Writes all answers, those of the earlier run among them, in their order. `early`: not all rows were asked;
        `complete`: all were answered."""
        _write(self._part, lines)
        if complete:
            self._mark.unlink(missing_ok=True)
        if not early or self._replaces:
            self._part.replace(self.path)

    def drop(self) -> None:
        """Removes what a run without a single answer has written."""
        self._part.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)


def _write(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    # Complete at every moment: it may be the only copy of earlier answers.
    new = path.with_name(f"{path.name}.new")
    new.write_text("".join(map(_json, lines)), "utf-8")
    new.replace(path)


def _json(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text("utf-8").split("\n"):
        try:
            value = json.loads(line)
        except ValueError:
            # The last line of a process that was killed.
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
