"""What a preflight child is given, in one JSON file with absolute paths."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict


class ModelFiles(BaseModel):
    """A base model that the supervisor has already fetched; `engine.catalogue.LocalModel` field by field."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    id: str
    revision: str
    path: Path
    weights_sha256: str
    num_parameters: int
    context_length: int
    architecture: str
    license: str = ""


class PreflightSpec(BaseModel):
    """Everything a preflight needs."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    config: dict[str, Any]
    """The spec as it was created, sparse, as `engine.config.wire.spec_to_dict` gives it."""
    model: ModelFiles
    sources: dict[str, Path]
    """Dataset id → file, whose name ends as it was uploaded."""
    out_dir: Path
    node_id: str = ""
    hardware: dict[str, Any] | None = None
    """`finetuneflow.v1.Hardware` as proto JSON; None: the child's own machine."""
