"""Public names of base models: aliases of the catalogue, ids of the hub, and models with random weights."""

from typing import Final

from engine.random_reference import RANDOM

BUILT_IN: Final = "smollm2-135m"


def is_on_hub(name: str) -> bool:
    """Returns True for `org/name`. A model with random weights may name one of the hub, and is not there itself."""
    return "/" in name and "," not in name and not name.startswith(RANDOM)


def model_reference(name: str, revision: str) -> str:
    """Returns what the catalogue is asked for, to get a model as it was at that revision."""
    return f"{name}@{revision}" if is_on_hub(name) else name
