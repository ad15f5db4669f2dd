"""Settings of an evaluator process: `FTF_EVALUATOR_<KEY>`, or else `FTF_<KEY>`."""

from pathlib import Path
from typing import ClassVar

from pydantic import Field

from services.settings import ServiceSettings


class EvaluatorSettings(ServiceSettings):
    """The settings of every service, and those of the evaluator."""

    service: ClassVar[str] = "evaluator"

    listen: str = "127.0.0.1:7463"
    max_dataset_bytes: int = Field(default=64 << 30, gt=0)
    """Maximum size of a hub dataset, in bytes. FTF_MAX_DATASET_BYTES also limits uploads."""
    idle_seconds: float = Field(default=600, gt=0)
    """Time after which a model that nobody asks is unloaded."""
    max_answers: int = Field(default=64, gt=0)
    """Number of answers that are generated or wait for it, above which a tenant is refused that has its share: this
    number divided by that of the tenants with answers."""
    kept_checkpoint_bytes: int = Field(default=8 << 30, gt=0)
    """Approximate disk space, in bytes, for checkpoints that are kept for the next answer."""
    harness_tasks: Path | None = None
    """Folder with tasks of lm-evaluation-harness: YAML files and the data that they name. It is read at the start. Code
    that these files name (`!function`) runs in the evaluator's children. None: no tasks."""
