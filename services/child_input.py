"""What the specs of all children have in common: `spec.json`, from a supervisor to its child."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Refuses what it does not know: supervisor and child are of one version."""

    model_config = ConfigDict(extra="forbid")


class ModelFiles(Strict):
    """The base model on this machine."""

    path: Path
    id: str
    """The public id, which an adapter names as its base; never a path."""
    revision: str
    weights_sha256: str
    license: str = ""
    num_parameters: int = 0
    context_length: int = 0
    """Tokens; 0 where the model does not say."""
    architecture: str = ""


class WholeCheckpoint(Strict):
    """An accepted checkpoint on this machine, with every byte as it was hashed."""

    path: Path
    manifest_sha256: str


class ChildInput(Strict):
    """Everything a child needs to know. Paths are absolute."""

    out_dir: Path
    """Where it writes; paths in its events are relative to it."""
