"""Rows of a file as questions to a model."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuneflow.cli.text_files import read_text
from finetuneflow.errors import InvalidArgument

_PLACEHOLDER = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_PROMPTS = ("prompt", "question", "instruction")
_EXPECTED = ("answer", "output", "completion", "ground_truth")


@dataclass(frozen=True)
class AskedRow:
    """A row as it is asked."""

    number: int
    """Line of the file, from 1."""
    prompt: str
    system_prompt: str | None
    ground_truth: str | None


class BadRow(ValueError):
    """A row that cannot be asked; the message says why."""


def read_rows(path: Path, template: str | None, system: str | None) -> tuple[list[AskedRow], dict[int, str]]:
    """Returns the rows of a JSON Lines file as they are asked, and by its number the problem of each that cannot be.

    Raises InvalidArgument for a template that no row can fill and a file that is no text, and OSError.
    """
    if template is not None:
        _check_template(template)
    asked, problems = [], {}
    # Not splitlines: text may contain other characters that it takes for ends of lines.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            try:
                asked.append(_asked(number, line, template, system))
            except BadRow as problem:
                problems[number] = str(problem)
    return asked, problems


def _asked(number: int, line: str, template: str | None, system: str | None) -> AskedRow:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise BadRow(f"is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise BadRow("is not a JSON object")
    prompt = _own_prompt(row) if template is None else _filled(row, template)
    expected = next((row[name] for name in _EXPECTED if row.get(name) is not None), None)
    own_system = row.get("system")
    return AskedRow(
        number,
        prompt,
        system if system is not None else (own_system if isinstance(own_system, str) else None),
        None if expected is None else _text(expected),
    )


def _own_prompt(row: Mapping[str, Any]) -> str:
    name = next((name for name in _PROMPTS if isinstance(row.get(name), str) and row[name]), None)
    if name is None:
        raise BadRow(f"has no text in any of the columns {', '.join(_PROMPTS)}; correct it, or set --template")
    more = row.get("input") if name == "instruction" else None
    # As a training joins them.
    return f"{row[name]}\n\n{more}" if isinstance(more, str) and more else row[name]


def _check_template(template: str) -> None:
    if "{%" in template:
        raise InvalidArgument(
            "--template has a Jinja statement.",
            advice="It takes columns only: {{ column }}. Prepare other prompts in a column `prompt`.",
        )
    if not _PLACEHOLDER.search(template) or "{{" in _PLACEHOLDER.sub("", template):
        raise InvalidArgument("--template has no {{ column }}, or one that is not closed.", reason="INVALID_REQUEST")


def _filled(row: Mapping[str, Any], template: str) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in row:
            raise BadRow(f"has no column {found[1]!r}")
        return _text(row[found[1]])

    return _PLACEHOLDER.sub(value, template)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
