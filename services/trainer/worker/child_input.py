"""The input of the trainer's child, which its supervisor writes to `input.json`."""

from pathlib import Path

from pydantic import Field

from engine.config.job import JobConfig
from services.child_input import ChildInput, ModelFiles, Strict, WholeCheckpoint


class UnusableCheckpoint(Strict):
    """An accepted checkpoint that is damaged or missing, newer than the one to resume from."""

    step: int
    problem: str


class TrainingInput(ChildInput):
    """Input of one attempt at a training. Checkpoints are written to checkpoints/step-<n>/ below out_dir."""

    config: JobConfig
    """The resolved configuration, without automatic values."""
    model: ModelFiles
    data_dir: Path
    """Folder with train/ and, if rows are held out, eval/, as written by `engine.data.prepare`."""
    sources: dict[str, Path] = Field(default={})
    """Dataset id → file of training_data, which keeps its name; empty unless the corpus is streamed."""
    requests: Path | None = None
    """Folder in out_dir in which the processes ask for these files, which are not all there; None if they are."""
    resume: WholeCheckpoint | None = None
    """Checkpoint to resume from; None: start from the beginning."""
    start: WholeCheckpoint | None = None
    """Checkpoint of another job with the adapter of config.start_from, or the file of an uploaded adapter. With
    start_mode "continue", a resumed training needs none."""
    unusable_checkpoints: list[UnusableCheckpoint] = Field(default=[])
    """Newest first."""
    total_steps: int = Field(ge=1)
    """Optimizer steps of the whole job, as counted by preflight; the length of the schedule."""
    prior_runtime_seconds: float = 0.0
    """Training time of earlier attempts, including lost steps."""
    extensions: tuple[str, ...] = ()
    """Names of the operator's extensions."""
    threads: int = Field(ge=1)
    """Threads of torch. A training is reproducible bit for bit only with the same number."""
