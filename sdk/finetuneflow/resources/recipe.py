"""Named presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Recipe(Resource):
    """A named preset for the unset fields of a spec."""

    name: str
    """Name to use as a spec's `recipe`."""
    description: str
    """Purpose of the recipe and source of its values."""
    spec: dict[str, Any]
    """Values of the recipe, in the form that `jobs.create` takes. Fields that preflight resolves are absent."""
