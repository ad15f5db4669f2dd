"""Rules about what the caller wrote that no single field can check: pairs that exclude each other, NUL characters.

They look at the spec before the recipe is merged into it: only the caller can put two fields in conflict.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.errors import Violation


def exclusive_fields(spec: Mapping[str, Any]) -> list[Violation]:
    """Pairs that only the caller can put in conflict: what a recipe says gives way by itself (`recipes.merge`)."""
    given = spec.get("hyperparameters")
    given = given if isinstance(given, Mapping) else {}
    found = []
    if given.get("warmup_ratio") is not None and given.get("warmup_steps") is not None:
        both = f"{given['warmup_ratio']!r} given together with warmup_steps = {given['warmup_steps']!r}"
        found.append(Violation("spec.hyperparameters.warmup_ratio", f"{both}; set one of the two."))
    if spec.get("phases") and spec.get("training_data"):
        description = "given together with training_data; put those rows into a phase of their own, or leave one out."
        found.append(Violation("spec.phases", description))
    if spec.get("phases") and given.get("max_steps") is not None:
        description = (
            f"{given['max_steps']!r} given together with phases, whose num_epochs say how long each is; leave it out."
        )
        found.append(Violation("spec.hyperparameters.max_steps", description))
    return found


def mappings_with_template(spec: Mapping[str, Any]) -> list[Violation]:
    """Data sources with both a mapping and a template."""
    found = []
    phases = spec.get("phases")
    listed = {name: spec.get(name) for name in ("training_data", "evaluation_data")}
    for number, phase in enumerate(phases if isinstance(phases, list) else ()):
        if isinstance(phase, Mapping):
            listed[f"phases[{number}].training_data"] = phase.get("training_data")
    for name, sources in listed.items():
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            if isinstance(source, Mapping) and source.get("mapping") and source.get("template") is not None:
                description = "given together with template, which names the file's columns itself; leave one out."
                found.append(Violation(f"spec.{name}[{index}].mapping", description))
    return found


def paths_with_nul(value: object, path: str) -> Iterator[str]:
    """Paths of texts that no database and no tokenizer takes as they are."""
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from paths_with_nul(key, path)
            yield from paths_with_nul(inner, f"{path}.{key}")
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from paths_with_nul(inner, f"{path}[{index}]")
