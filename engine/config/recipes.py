"""Recipes: named presets for the fields that a caller leaves unset."""

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from engine.errors import JobError, Violation

# Setting the first field drops the preset's value for the second; they conflict.
_DROPS = (
    ("warmup_ratio", "warmup_steps"),
    ("warmup_steps", "warmup_ratio"),
    ("num_epochs", "max_steps"),
)

_FORMER_NAMES = {"qlora-3b": "experimentation-qa", "text-pretraining": "text-pretrain"}
"""Names of earlier versions, which stored specs and job files have."""


@dataclass(frozen=True)
class Recipe:
    """A preset. `values` has the fields that the recipe sets, merged over those of the recipe "default"."""

    name: str
    description: str
    values: Mapping[str, Any]


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `under` overridden by the values of `over`; tables are merged key by key, lists are replaced."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in under.items()}
    for set_, dropped in _DROPS:
        if over.get(set_) is not None:
            merged.pop(dropped, None)
    for key, value in over.items():
        if value is None:
            continue
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@functools.cache
def recipes() -> Mapping[str, Recipe]:
    """Returns all recipes by name, in alphabetical order."""
    read: dict[str, dict[str, Any]] = {}
    for entry in resources.files("recipes").iterdir():
        if entry.name.endswith(".toml"):
            read[entry.name.removesuffix(".toml")] = tomllib.loads(entry.read_text(encoding="utf-8"))
    descriptions = {name: str(values.pop("description")) for name, values in read.items()}
    return {name: Recipe(name, descriptions[name], merge(read["default"], read[name])) for name in sorted(read)}


def recipe(name: str) -> Recipe:
    """Returns the recipe called `name`, which may be a former name.

    Raises JobError("RECIPE_NOT_FOUND"), which names the nearest one.
    """
    known = recipes()
    current = _FORMER_NAMES.get(name, name)
    if current in known:
        return known[current]
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]}?" if close else f"Recipes: {', '.join(known)}."
    message = f"There is no recipe {name[:80]!r}. {hint}"
    raise JobError("RECIPE_NOT_FOUND", message, hint, [Violation("spec.recipe", message)])
