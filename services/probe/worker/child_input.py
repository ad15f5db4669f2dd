"""What a preflight child is given, in one JSON file with absolute paths."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from services.child_input import ChildInput, ModelFiles, Strict


class HubSource(Strict):
    """A file that came from a hub. `finetuneflow.v1.HubDataset` says what its fields are."""

    asked: str
    reference: str
    revision: str
    filename: str
    size_bytes: int
    sha256: str


class PreflightInput(ChildInput):
    """Everything a preflight needs."""

    config: dict[str, Any]
    """The spec as it was created, sparse, as `engine.config.spec_proto.spec_to_dict` gives it."""
    model: ModelFiles
    sources: dict[str, Path]
    """Dataset id → file, whose name ends as it was uploaded."""
    hub: list[HubSource] = Field(default=[])
    """Those of `sources` that came from a hub, under the names that `config` has for them."""
    content_key: str = ""
    """What the token shards depend on (`engine.data.content_key`); empty: the child finds it out."""
    shards: Path | None = None
    """The folder of token shards with that key which an earlier job has made, verified: they are taken."""
    processes: int = Field(default=1, ge=1)
    """That tokenise a large file, side by side."""
    node_id: str = ""
    hardware: dict[str, Any] | None = None
    """`finetuneflow.v1.Hardware` as proto JSON; None: the child's own machine."""
    prices: Path | None = None
    """The operator's price table; None: the one that comes with the program."""
    holds_artifacts: bool = True
    """Whether the artifact store lies on the disk that training writes to, too."""


class DryRunInput(ChildInput):
    """What a preflight needs that makes nothing."""

    kind: Literal["dry_run"] = "dry_run"
    config: dict[str, Any]
    """The spec, sparse, as `engine.config.spec_proto.spec_to_dict` gives it."""
    model: ModelFiles
    """Its tokenizer is in `path`; weights need not be there."""
    architecture: dict[str, Any]
    """The base model's config.json."""
    shapes: dict[str, tuple[int, ...]]
    """Of its tensors."""
    missing_bytes: int = 0
    """Of its weights that are not on the machine yet."""
    sources: dict[str, Path]
    """Dataset id → file, whose name ends as it was uploaded."""
    hub: list[HubSource] = Field(default=[])
    """Those of `sources` that came from a hub, under the names that `config` has for them."""
    hardware: dict[str, Any]
    """`finetuneflow.v1.Hardware` as proto JSON: the machine it is judged for."""
    processes: int = Field(default=1, ge=1)
    """That read a large file, side by side."""
    holds_artifacts: bool
    observed: list[dict[str, Any]] = Field(default=[])
    """`finetuneflow.v1.ObservedSpeed` as proto JSON."""
    prices: Path | None = None


class InspectionInput(ChildInput):
    """A look into one dataset."""

    kind: Literal["look"] = "look"
    config: dict[str, Any]
    """A sparse job spec with this dataset as its only training data."""
    tokenizer_dir: Path
    file: Path
    first_row: int = 1
    num_rows: int = 0
    """Rows to show; 0 to check them all."""
    processes: int = Field(default=1, ge=1)
    """That tokenise a large file, side by side."""
