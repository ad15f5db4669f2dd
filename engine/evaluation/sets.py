"""Rows beside the held-out ones: the regression set and the critical questions."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from engine.config.evaluation import GENERAL, NO_SET, Evaluation
from engine.config.graders import grader, item_paths, value_at
from engine.config.job import DataSource, JobConfig
from engine.data.block_tokenizer import EXAMINED_ROWS
from engine.data.prepare import prepare_evaluation
from engine.errors import JobError, Violation
from engine.evaluation.general_set import general_rows
from engine.evaluation.held_out import read_held_out
from engine.evaluation.questions import read_questions

_GENERAL_LENGTH = 512
_REGRESSION = "evaluation.regression"


def prepare_regression(
    config: JobConfig, uploaded: Path | None, tokenizer_dir: Path, out: Path, alive: Callable[[], None]
) -> bool:
    """Writes the token shards of the regression set to `out`/eval. Returns False if the job has none.

    Raises JobError for an uploaded set that cannot be used.
    """
    if config.evaluation.regression == NO_SET:
        return False
    if uploaded is None:
        if config.evaluation.regression != GENERAL:
            raise ValueError("the file of the regression set is missing")
        out.parent.mkdir(parents=True, exist_ok=True)
        uploaded = out.parent / "general.jsonl"
        uploaded.write_text("".join(json.dumps(row) + "\n" for row in general_rows()), "utf-8")
        # The rows are no rows of the job: its system prompt and its limit of length are not theirs.
        lengthened = config.hyperparameters.model_copy(update={"max_length": _GENERAL_LENGTH})
        config = config.model_copy(update={"system_prompt": None, "hyperparameters": lengthened})
    source = DataSource(dataset=config.evaluation.regression)
    try:
        prepare_evaluation(
            config, [source], tokenizer_dir, {source.dataset: uploaded}, out, lambda phase, fraction: alive()
        )
    except JobError as error:
        said = [Violation(_placed(one.field), one.description) for one in error.violations]
        raise JobError(error.reason, f"{_REGRESSION}: {error.message}", error.advice, said) from error
    return True


def check_sets(
    config: JobConfig, sources: Mapping[str, Path], tokenizer_dir: Path, scratch: Path, alive: Callable[[], None]
) -> None:
    """Raises JobError if the critical questions or the uploaded regression set cannot be used: found by the evaluation,
    it would fail a job that has been trained."""
    if config.evaluation.questions:
        read_questions(sources[config.evaluation.questions])
    if uploaded := sources.get(config.evaluation.regression):
        prepare_regression(config, uploaded, tokenizer_dir, scratch, alive)
        shutil.rmtree(scratch)


def missing_values(evaluation: Evaluation, path: Path) -> Iterator[str]:
    """Yields a message for each value that a grader names and none of the first held-out rows has; `path` is that of
    eval_rows.jsonl."""
    rows = read_held_out(path, EXAMINED_ROWS)
    for read in map(grader, evaluation.graders if rows else ()):
        for value in item_paths(read):
            if all(value_at(value, row.values) is None for row in rows):
                yield (
                    f"Grader {read.name} needs {value}, which the held-out rows do not have: it will grade none of "
                    "them."
                )


def _placed(field: str) -> str:
    for name in ("training_data[0]", "evaluation_data[0]"):
        field = field.replace(name, _REGRESSION)
    return field
