"""Public names of base models: aliases of the catalogue, ids of the hub, and INL models."""


def is_on_hub(name: str) -> bool:
    """Returns True for `org/name`. An INL model may name a tokenizer of the hub, and is not there itself."""
    return "/" in name and "," not in name


def model_reference(name: str, revision: str) -> str:
    """Returns what the catalogue is asked for, to get a model as it was at that revision."""
    return f"{name}@{revision}" if is_on_hub(name) else name
