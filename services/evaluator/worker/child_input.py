"""Input of the evaluator's child, which reads it from `input.json`."""

from pathlib import Path

from pydantic import Field

from engine.config.job import DataSource, JobConfig, Quantization
from services.child_input import ChildInput, ModelFiles, Strict, WholeCheckpoint


class Side(Strict):
    """One of the models that are compared, or the only one that is measured."""

    id: str
    """Name that the caller knows: a base model's id, or `ft:<job_id>`."""
    model: ModelFiles
    checkpoint: WholeCheckpoint | None = None
    """An adapter, or all weights with `is_full`. None: the base model itself."""
    is_full: bool = False
    trained_on: Quantization | None = None
    """Quantization of the base weights in training; None for unquantized ones."""
    chat_template: str | None = None
    """Template that it was trained with, in which it is asked as a judge. None: the tokenizer's own."""
    needs_quantized: bool = False
    """True for LoftQ: the adapter contains what the quantization has lost."""


class EvaluationInput(ChildInput):
    """One evaluation. Paths are absolute."""

    config: JobConfig
    """The resolved configuration."""
    base: Side | None
    """The model that is compared with. None: only `tuned` is measured."""
    tuned: Side
    """The model that the evaluation is about."""
    data_dir: Path
    """eval/ and eval_rows.jsonl, where rows are held out, and prepared.json, as `engine.data.prepare` writes them. The
    child writes them there if there are `sources`; without these and without a job the folder does not exist."""
    sources: list[DataSource] = Field(default=[])
    """Rows to compare the models on. Empty: the held-out rows of the job."""
    files: dict[str, Path] = Field(default={})
    """The file of each dataset in `sources`."""
    threads: int = Field(ge=1)
    """Number of torch's threads."""
    findings: list[str] = Field(default=[])
    """Findings about the losses of the training."""
    questions: Path | None = None
    """The uploaded file of critical questions."""
    regression: Path | None = None
    """The uploaded regression set. None: the general one, or none at all."""
    judges: dict[str, Side] = Field(default={})
    """Models that grade answers, by the names that graders give them; `base` is the base model."""
    measurements: list[Path] = Field(default=[])
    """Files of earlier evaluations."""
    harness_folder: Path | None = None
    """The operator's tasks of lm-evaluation-harness. None: none of them is asked for."""
