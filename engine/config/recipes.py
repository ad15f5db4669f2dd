"""Named presets: what the fields that a caller leaves out become."""

import difflib
import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from engine.errors import JobError, Violation

# Setting the left one takes back what a preset says of the right one: together they would contradict each other.
_TAKES_BACK = (
    ("warmup_ratio", "warmup_steps"),
    ("warmup_steps", "warmup_ratio"),
    ("num_epochs", "max_steps"),
)


@dataclass(frozen=True)
class Recipe:
    """A preset. `values` has every field it decides, on top of those that recipe "default" decides."""

    name: str
    description: str
    values: Mapping[str, Any]


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with the values of `over` on top; tables are merged key by key, lists are replaced."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in under.items()}
    for set_, taken_back in _TAKES_BACK:
        if over.get(set_) is not None:
            merged.pop(taken_back, None)
    for key, value in over.items():
        if value is None:
            continue
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


@functools.cache
def recipes() -> Mapping[str, Recipe]:
    """Every recipe that is shipped, by name, in alphabetical order."""
    read: dict[str, dict[str, Any]] = {}
    for entry in resources.files("recipes").iterdir():
        if entry.name.endswith(".toml"):
            read[entry.name.removesuffix(".toml")] = tomllib.loads(entry.read_text(encoding="utf-8"))
    descriptions = {name: str(values.pop("description")) for name, values in read.items()}
    return {name: Recipe(name, descriptions[name], merge(read["default"], read[name])) for name in sorted(read)}


def recipe(name: str) -> Recipe:
    """The recipe called `name`; JobError("RECIPE_NOT_FOUND") names the nearest one when there is none."""
    known = recipes()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    hint = f"Did you mean {close[0]}?" if close else f"There are: {', '.join(known)}."
    message = f"There is no recipe {name[:80]!r}. {hint}"
    raise JobError("RECIPE_NOT_FOUND", message, hint, [Violation("spec.recipe", message)])
