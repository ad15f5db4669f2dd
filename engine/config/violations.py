"""Violations of a job's configuration: each names the field, the given value, what is allowed and the default."""

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from engine.errors import Violation


def conflicts(spec: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each pair of fields in `spec` that exclude each other.

    `spec` has only what the caller set: `recipes.merge` resolves conflicts with a recipe's values.
    """
    given = spec.get("hyperparameters")
    given = given if isinstance(given, Mapping) else {}
    found = []
    if given.get("warmup_ratio") is not None and given.get("warmup_steps") is not None:
        description = f"cannot be combined with warmup_steps = {given['warmup_steps']!r}; set one of the two."
        found.append(Violation("spec.hyperparameters.warmup_ratio", description))
    if spec.get("phases") and spec.get("training_data"):
        description = "cannot be combined with training_data; move those rows into a phase, or remove one of the two."
        found.append(Violation("spec.phases", description))
    if spec.get("phases") and given.get("max_steps") is not None:
        description = "cannot be combined with phases, whose num_epochs set the length of each; remove it."
        found.append(Violation("spec.hyperparameters.max_steps", description))
    return [*found, *_mappings_with_templates(spec)]


def nul_characters(spec: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each text of `spec` that holds a NUL character."""
    return [Violation(path, "holds a NUL character; remove it.") for path in _paths_with_nul(spec, "spec")]


def field_violation(detail: ErrorDetails, model: type[BaseModel], preset: Mapping[str, Any]) -> Violation:
    """Describes one pydantic error of `model`: the given value, what is allowed, the default, and the nearest name.

    `preset` has the recipe's values, which are the defaults.
    """
    loc = [part for part in detail["loc"] if part != "[key]"]
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    field, siblings = _look_up(model, loc)
    given = detail["input"]
    if detail["type"] == "extra_forbidden":
        return Violation(path, _unknown_field(model, str(loc[-1]), siblings))
    if detail["type"] == "missing":
        return Violation(path, "is required; set it.")
    if "[key]" in detail["loc"]:
        keys = _literals(typing.get_args(field.annotation)[0]) if field else []
        allowed = f"one of {', '.join(keys)}" if keys else "a key matching [a-z][a-z0-9_-]{0,62}"
        return Violation(path, f"{given!r} given; must be {allowed}.{_nearest(str(given), keys)}")
    literals = _literals(field.annotation) if field else []
    # An entry of a list or table has its own rules, which only pydantic's message states.
    if (
        field is None
        or detail["type"] == "value_error"
        or (loc[-1] not in siblings and not (literals and isinstance(loc[-1], int)))
    ):
        return Violation(path, f"{_shown(given)} given: {detail['msg'].removeprefix('Value error, ')}.")
    described = _default(loc, field, preset)
    hint = _nearest(given, literals) if isinstance(given, str) else ""
    return Violation(path, f"{_shown(given)} given; must be {_allowed(field, literals)}{described}.{hint}")


def _mappings_with_templates(spec: Mapping[str, Any]) -> list[Violation]:
    found = []
    phases = spec.get("phases")
    listed = {name: spec.get(name) for name in ("training_data", "evaluation_data")}
    for number, phase in enumerate(phases if isinstance(phases, list) else ()):
        if isinstance(phase, Mapping):
            listed[f"phases[{number}].training_data"] = phase.get("training_data")
    for name, sources in listed.items():
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            if isinstance(source, Mapping) and source.get("mapping") and source.get("template") is not None:
                description = "cannot be combined with template, which names the file's columns itself; remove one."
                found.append(Violation(f"spec.{name}[{index}].mapping", description))
    return found


def _paths_with_nul(value: object, path: str) -> Iterator[str]:
    """Yields the paths of texts with a NUL character, which neither databases nor tokenizers store unchanged."""
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _paths_with_nul(key, path)
            yield from _paths_with_nul(inner, f"{path}.{key}")
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _paths_with_nul(inner, f"{path}[{index}]")


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


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal or not arguments:
        return [annotation]
    return [leaf for argument in arguments for leaf in _flatten(argument)]


def _literals(annotation: Any) -> list[Any]:
    return [value for leaf in _flatten(annotation) for value in typing.get_args(leaf)]


def _allowed(field: FieldInfo, literals: Sequence[Any]) -> str:
    if literals:
        return "one of " + ", ".join(str(value) for value in literals)
    low, high = "(-inf", "inf)"
    lengths: dict[str, int] = {}
    for rule in field.metadata:
        match rule:
            case annotated_types.Gt(gt=bound):
                low = f"({_number(bound)}"
            case annotated_types.Ge(ge=bound):
                low = f"[{_number(bound)}"
            case annotated_types.Lt(lt=bound):
                high = f"{_number(bound)})"
            case annotated_types.Le(le=bound):
                high = f"{_number(bound)}]"
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
        return f"a whole number in {low}, {high}"
    if float in leaves:
        return f"a number in {low}, {high}"
    span = " and ".join(f"{word} {bound}" for word, bound in lengths.items())
    several = typing.get_origin(field.annotation) in (list, dict)
    unit = "entries" if several else "characters"
    kind = {list: "a list", dict: "a table"}.get(typing.get_origin(field.annotation) or str, "text")
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        kind = "a table"
    return f"{kind} of {span} {unit}" if span else kind


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


def _unknown_field(model: type[BaseModel], key: str, siblings: Sequence[str]) -> str:
    # The fields of all sections are compared: the commonest mistake in a flat file is a field in the wrong section.
    elsewhere = _all_paths(model)
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
