"""Advice that names a setting: by its field, for job files and the SDK, and by the option of `ftf`."""

import shlex
from collections.abc import Mapping


def setting(field: str, value: object) -> str:
    """Returns the words after "set": `method to lora (--set method=lora)`. `field` is a path in the spec."""
    return f"{field} to {value} ({option(field, value)})"


def option(field: str, value: object) -> str:
    """Returns `--set method=lora`, which names the field and its value at once."""
    return f"--set {field}={value}"


def mapping(columns: Mapping[str, str]) -> str:
    """Returns the words after "use": `--map question=prompt (field mapping.question of the dataset)`."""
    options = " ".join(f"--map {shlex.quote(f'{ours}={theirs}')}" for ours, theirs in columns.items())
    fields = " and ".join(f"mapping.{ours}" for ours in columns)
    return f"{options} (field{'s' * (len(columns) > 1)} {fields} of the dataset)"
