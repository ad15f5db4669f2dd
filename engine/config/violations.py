"""Violations of a job's configuration: each names the field, the given value, what is allowed and the default."""

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from engine.errors import Violation


def violation(detail: ErrorDetails, model: type[BaseModel], preset: Mapping[str, Any]) -> Violation:
    """Describes one error of validating `model`: the field's path, the value given, what is allowed, the default.

    `preset` holds the recipe's values, which are the defaults that the caller sees.
    """
    loc = [part for part in detail["loc"] if part != "[key]"]
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    field, siblings = _look_up(model, loc)
    given = detail["input"]
    if detail["type"] == "extra_forbidden":
        return Violation(path, _unknown_field(str(loc[-1]), siblings, _all_paths(model)))
    if detail["type"] == "missing":
        return Violation(path, "is required; set it.")
    if "[key]" in detail["loc"]:
        keys, pattern = _keys(field)
        allowed = f"one of {', '.join(keys)}" if keys else f"a key matching {pattern}"
        return Violation(path, f"{given!r} given; must be {allowed}.{_nearest(str(given), keys)}")
    literals = _literals(field.annotation) if field else []
    # An entry of a list or table has its own rules, which only pydantic's message states.
    if (
        field is None
        or detail["type"] == "value_error"
        or (loc[-1] not in siblings and not (literals and isinstance(loc[-1], int)))
    ):
        said = detail["msg"].removeprefix("Value error, ")
        # A whole table says less than the problem in it.
        return Violation(path, f"{said}." if isinstance(given, Mapping) else f"{_shown(given)} given: {said}.")
    described = _default(loc, field, preset)
    hint = _nearest(given, literals) if isinstance(given, str) else ""
    return Violation(path, f"{_shown(given)} given; must be {_allowed(field, literals)}{described}.{hint}")


def _look_up(model: type[BaseModel], loc: Sequence[str | int]) -> tuple[FieldInfo | None, Sequence[str]]:
    """Returns the field at a path, and the names of the fields beside it."""
    field: FieldInfo | None = None
    siblings: Sequence[str] = ()
    for part in loc:
        if isinstance(part, int):
            continue
        siblings = list(model.model_fields)
        if part not in model.model_fields:
            return None, siblings
        field = model.model_fields[part]
        inner = [t for t in _flatten(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return field, siblings


def _keys(field: FieldInfo | None) -> tuple[Sequence[str], str]:
    """Returns the keys that a table allows, and the pattern that its keys must match."""
    key, *_ = typing.get_args(field.annotation) if field else (str,)
    rules = [rule for known in getattr(key, "__metadata__", ()) for rule in getattr(known, "metadata", ())]
    pattern = next((rule.pattern for rule in rules if getattr(rule, "pattern", None)), "")
    return _literals(key), str(pattern).strip("^$")


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal or not arguments:
        return [annotation]
    return [leaf for argument in arguments for leaf in _flatten(argument)]


def _literals(annotation: Any) -> list[Any]:
    return [value for leaf in _flatten(annotation) for value in typing.get_args(leaf)]


def _allowed(field: FieldInfo, literals: Sequence[Any]) -> str:
    if literals:
        # An empty text is the default: whoever wants it leaves the field out.
        return "one of " + ", ".join(str(value) for value in literals if value != "")
    low, high = "", ""
    lengths: dict[str, int] = {}
    for rule in field.metadata:
        match rule:
            case annotated_types.Gt(gt=bound):
                low = f"above {_number(bound)}"
            case annotated_types.Ge(ge=bound):
                low = f"at least {_number(bound)}"
            case annotated_types.Lt(lt=bound):
                high = f"below {_number(bound)}"
            case annotated_types.Le(le=bound):
                high = f"at most {_number(bound)}"
            case annotated_types.MinLen(min_length=bound):
                lengths["at least"] = bound
            case annotated_types.MaxLen(max_length=bound):
                lengths["at most"] = bound
    leaves = _flatten(field.annotation)
    pattern = next((rule.pattern for rule in field.metadata if getattr(rule, "pattern", None)), None)
    if pattern:
        return f"text matching {str(pattern).strip('^$')}"
    if bool in leaves:
        return "true or false"
    if int in leaves:
        return f"a whole number{_between(low, high)}"
    if float in leaves:
        return f"a number{_between(low, high)}"
    span = " and ".join(f"{word} {bound}" for word, bound in lengths.items())
    several = typing.get_origin(field.annotation) in (list, dict)
    unit = "entries" if several else "characters"
    kind = {list: "a list", dict: "a table"}.get(typing.get_origin(field.annotation) or str, "text")
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        kind = "a table"
    return f"{kind} of {span} {unit}" if span else kind


def _between(low: str, high: str) -> str:
    if low.startswith("at least ") and high.startswith("at most "):
        return f" from {low.removeprefix('at least ')} to {high.removeprefix('at most ')}"
    return "".join(f" {bound}" for bound in (" and ".join(filter(None, (low, high))),) if bound)


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _default(loc: Sequence[str | int], field: FieldInfo, preset: Mapping[str, Any]) -> str:
    value: Any = preset
    for part in loc:
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and not field.is_required():
        value = field.get_default(call_default_factory=True)
    if value is None or value == "" or isinstance(value, list | dict | BaseModel):
        return ""
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"; default {shown}"


def _nearest(given: Any, known: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(given), [str(value) for value in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def _unknown_field(key: str, siblings: Sequence[str], elsewhere: Mapping[str, str]) -> str:
    # The fields of all sections are compared: the commonest mistake in a flat file is a field in the wrong section.
    known = list(dict.fromkeys([*siblings, *elsewhere]))
    close = difflib.get_close_matches(re.sub(r"^num_train_", "num_", key), known, n=1, cutoff=0.6)
    if not close:
        return f"There is no such field. Fields here: {', '.join(siblings)}."
    nearest = close[0] if close[0] in siblings else f"spec.{elsewhere[close[0]]}"
    return f"There is no such field. Did you mean {nearest}?"


def _all_paths(model: type[BaseModel]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in model.model_fields.items():
        found.setdefault(name, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner in field.annotation.model_fields:
                found.setdefault(inner, f"{name}.{inner}")
    return found
