"""Options of `ftf evaluate` that stand for tables: conditions of the gate, and files of graders."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

_CONDITION = re.compile(r"(?P<gain>gain\()?(?P<metric>.+?)(?(gain)\))\s*(?P<operator>>=|<=|>)\s*(?P<value>[-+.\deE]+)")


def condition(text: str) -> dict[str, Any]:
    """Reads a condition: `exact_match>=0.8`, `perplexity<=20` or `gain(loss)>0.1`. Raises typer.BadParameter."""
    found = _CONDITION.fullmatch(text.strip())
    name = found and {("gain(", ">"): "min_gain", (None, ">="): "min_value", (None, "<="): "max_value"}.get(
        (found["gain"], found["operator"])
    )
    try:
        if found and name:
            return {"metric": found["metric"].strip(), name: float(found["value"])}
    except ValueError:
        pass
    wanted = "METRIC>=VALUE, METRIC<=VALUE or gain(METRIC)>VALUE, such as 'exact_match>=0.8'"
    raise typer.BadParameter(f"{text!r} is no condition; write {wanted}.", param_hint="--gate")


def grader_objects(path: Path) -> list[dict[str, Any]]:
    """Reads a JSON file with one grader object or a list of them. Raises typer.BadParameter."""
    read = _read(path, "--graders")
    listed = read if isinstance(read, list) else [read]
    if not all(isinstance(each, dict) for each in listed):
        raise typer.BadParameter(f"{path} must hold a grader object or a list of them.", param_hint="--graders")
    return listed


def json_object(path: Path) -> dict[str, Any]:
    """Reads a JSON file with an object. Raises typer.BadParameter."""
    read = _read(path, "--json-schema")
    if not isinstance(read, dict):
        raise typer.BadParameter(f"{path} must hold a JSON object.", param_hint="--json-schema")
    return read


def with_removed(settings: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Returns the settings with those in `names` empty, which removes the job's own ones. Raises typer.BadParameter."""
    for name in names:
        if name not in settings:
            known = ", ".join(settings)
            raise typer.BadParameter(f"{name!r} cannot be removed; name one of {known}.", param_hint="--clear")
        if settings[name] is not None:
            raise typer.BadParameter(f"{name} is removed and given; leave out one of the two.", param_hint="--clear")
    empty = {"questions": "", "json_schema": {}}
    return {**settings, **{name: empty.get(name, []) for name in names}}


def _read(path: Path, option: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise typer.BadParameter(f"{path} is no JSON: {error}", param_hint=option) from None
