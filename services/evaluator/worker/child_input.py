"""Input of the evaluator's child, which reads it from `input.json`."""

from pathlib import Path

from pydantic import Field

from engine.config.job import JobConfig
from services.child_input import ChildInput, ModelFiles


class EvaluationInput(ChildInput):
    """One evaluation. Paths are absolute."""

    config: JobConfig
    """The resolved configuration."""
    model: ModelFiles
    adapter_dir: Path
    """The checkpoint to evaluate: an adapter, or all weights if config.method is full."""
    data_dir: Path
    """eval/ and eval_rows.jsonl, where rows are held out, and prepared.json, as `engine.data.prepare` writes them."""
    threads: int = Field(ge=1)
    """Number of torch's threads."""
