"""Parts of every child's input, which its supervisor writes to `input.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from engine.catalogue import LocalModel


class Strict(BaseModel):
    """Refuses unknown fields: supervisor and child have the same version."""

    model_config = ConfigDict(extra="forbid")


class ModelFiles(Strict):
    """Files of the base model on this machine."""

    path: Path
    id: str
    """Public id, which an adapter names as its base; never a path."""
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
    """An accepted and verified checkpoint on this machine."""

    path: Path
    manifest_sha256: str


class ChildInput(Strict):
    """Base class of a child's input. Paths are absolute."""

    out_dir: Path
    """Folder for its output; paths in its events are relative to it."""
