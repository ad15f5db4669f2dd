"""Named presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetuneflow.resources.convert import Resource


@dataclass(frozen=True, kw_only=True)
class Recipe(Resource):
    """A named preset; `spec` holds every field it decides, in the form that `jobs.create` takes."""

    name: str
    description: str
    spec: dict[str, Any]
