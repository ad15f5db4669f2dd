"""What the trainer's supervisor hands to its child, as `spec.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from engine.config.job import JobConfig


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelFiles(_Strict):
    """The base model on this machine."""

    path: Path
    id: str
    """The public id, which the adapter names as its base; never a path."""
    revision: str
    weights_sha256: str


class TrainingSpec(_Strict):
    """One attempt at a training. Paths are absolute."""

    config: JobConfig
    """The resolved configuration: nothing in it is automatic any more."""
    model: ModelFiles
    data_dir: Path
    """train/ and, where rows are held out, eval/, as `engine.data.prepare` writes them."""
    out_dir: Path
    """Checkpoints are written to checkpoints/step-<n>/ below it."""
    resume_from: Path | None = None
    """A verified checkpoint folder of an earlier attempt."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of the whole job, as preflight counted them. The schedule is laid over them."""
    prior_runtime_seconds: float = 0.0
    """What earlier attempts trained, lost steps included."""
    threads: int = Field(ge=1)
    """Of torch. Part of what makes a training reproducible to the bit."""
