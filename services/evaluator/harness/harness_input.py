"""Input of the process that runs lm-evaluation-harness."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from engine.config.job import Quantization
from services.child_input import ChildInput
from services.evaluator.worker.child_input import Side


class HarnessInput(ChildInput):
    """One or two models, and the tasks that they are measured on. Paths are absolute."""

    base: Side | None
    """None if the other one is measured alone."""
    tuned: Side
    precision: Literal["fp32", "bf16", "fp16"]
    device: Literal["cpu", "cuda"]
    quantization: Quantization | None
    """Quantization of the weights of both models."""
    chat_template: str | None
    """Replaces the model's own."""
    folder: Path
    """The operator's folder of tasks. Relative paths of data in their files start here."""
    tasks: list[str]
    limit: int | None
    """Maximum number of rows of each task; None: all."""
    batch_size: int = Field(ge=1)
    threads: int = Field(ge=1)
