"""What the evaluator's supervisor hands to its child, as `spec.json`."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from engine.config.job import JobConfig


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelFiles(_Strict):
    """The base model on this machine."""

    path: Path
    id: str
    """The public id."""
    revision: str
    weights_sha256: str


class EvaluationSpec(_Strict):
    """One evaluation. Paths are absolute."""

    config: JobConfig
    """The resolved configuration."""
    model: ModelFiles
    adapter_dir: Path
    """The checkpoint to judge: an adapter, or the whole weights where config.method is full."""
    data_dir: Path
    """eval/ and eval_rows.jsonl, where rows are held out, and prepared.json, as `engine.data.prepare` writes them."""
    out_dir: Path
    threads: int = Field(ge=1)
    """Of torch."""
