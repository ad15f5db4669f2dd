"""What the trainer's supervisor hands to its child, as `input.json`."""

from pathlib import Path

from pydantic import Field

from engine.config.job import JobConfig
from services.child_input import ChildInput, ModelFiles, Strict, WholeCheckpoint


class UnusableCheckpoint(Strict):
    """An accepted checkpoint, newer than the one that is resumed from, that is not what was written any more."""

    step: int
    problem: str


class TrainingInput(ChildInput):
    """One attempt at a training. Checkpoints are written to checkpoints/step-<n>/ below out_dir."""

    config: JobConfig
    """The resolved configuration: nothing in it is automatic any more."""
    model: ModelFiles
    data_dir: Path
    """train/ and, where rows are held out, eval/, as `engine.data.prepare` writes them."""
    resume: WholeCheckpoint | None = None
    """Where an earlier attempt got to; None: from the beginning."""
    unusable_checkpoints: list[UnusableCheckpoint] = Field(default=[])
    """Newest first."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of the whole job, as preflight counted them. The schedule is laid over them."""
    prior_runtime_seconds: float = 0.0
    """What earlier attempts trained, lost steps included."""
    threads: int = Field(ge=1)
    """Of torch. Part of what makes a training reproducible to the bit."""
