"""Defines the common part of `input.json`, the file that a supervisor writes for its child."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from engine.catalogue import LocalModel


class Strict(BaseModel):
    """Rejects unknown fields: supervisor and child have the same version."""

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
    """In tokens; 0 if the model does not state it."""
    architecture: str = ""

    def local(self) -> LocalModel:
        """Returns the same model as the engine's type."""
        return LocalModel(**self.model_dump())


class WholeCheckpoint(Strict):
    """An accepted checkpoint on this machine, with every byte as it was hashed."""

    path: Path
    manifest_sha256: str


class ChildInput(Strict):
    """Everything a child needs to know. Paths are absolute."""

    out_dir: Path
    """The folder that the child writes to; paths in its events are relative to it."""
