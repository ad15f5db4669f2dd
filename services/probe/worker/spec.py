"""What a preflight child is given, in one JSON file with absolute paths."""

from pathlib import Path
from typing import Any

from pydantic import Field

from services.specs import ChildSpec, ModelFiles


class PreflightSpec(ChildSpec):
    """Everything a preflight needs."""

    config: dict[str, Any]
    """The spec as it was created, sparse, as `engine.config.wire.spec_to_dict` gives it."""
    model: ModelFiles
    sources: dict[str, Path]
    """Dataset id → file, whose name ends as it was uploaded."""
    processes: int = Field(default=1, ge=1)
    """That tokenise a large file, side by side."""
    node_id: str = ""
    hardware: dict[str, Any] | None = None
    """`finetuneflow.v1.Hardware` as proto JSON; None: the child's own machine."""
    prices: Path | None = None
    """The operator's price table; None: the one that comes with the program."""


class LookSpec(ChildSpec):
    """A look into one dataset."""

    config: dict[str, Any]
    """A sparse job spec with this dataset as its only training data."""
    tokenizer_dir: Path
    file: Path
    first_row: int = 1
    num_rows: int = 0
    """Rows to show; 0 to check them all."""
    processes: int = Field(default=1, ge=1)
    """That tokenise a large file, side by side."""
