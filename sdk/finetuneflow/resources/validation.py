"""Problems of data, and its rows as training sees them."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import DataStatistics


class Verdict(OpenEnum):
    """Overall verdict of a report."""

    OK = "OK"
    """No problems were found."""
    WARNINGS = "WARNINGS"
    """A job would run, with warnings."""
    REFUSED = "REFUSED"
    """A job would be refused."""


class ProblemSeverity(OpenEnum):
    """Severity of a problem."""

    WARNING = "WARNING"
    """The job would run."""
    ERROR = "ERROR"
    """The job would be refused."""


@dataclass(frozen=True, kw_only=True)
class RowProblem(Resource):
    """A problem of one row."""

    row: int
    """Number of the row, from 1: the line on which it starts, or its position in files without lines. 0 for the whole
    file."""
    column: str
    """Column with the problem; empty for the whole row."""
    reason: str
    """The cause: one of `finetuneflow.Reason`."""
    message: str
    """The problem and how to fix it."""
    source: str
    """Path of the source in the spec, such as `training_data[0]`."""
    severity: ProblemSeverity | None
    """Severity: ERROR refuses the job, WARNING does not."""


@dataclass(frozen=True, kw_only=True)
class ProblemCount(Resource):
    """Number of problems of one kind in one source."""

    source: str
    """Path of the source in the spec, such as `training_data[0]`."""
    reason: str
    """The cause: one of `finetuneflow.Reason`."""
    severity: ProblemSeverity | None
    """Severity: ERROR refuses the job, WARNING does not."""
    count: int
    """Number of problems."""


@dataclass(frozen=True, kw_only=True)
class JobFigures(Resource):
    """Figures that data gives a job."""

    tokens_per_epoch: int
    """Tokens of one epoch over the training rows, after truncation."""
    total_steps: int
    """Optimizer steps of the whole job."""
    total_steps_packed: int
    """Optimizer steps of the whole job with packing."""
    packing_efficiency: float
    """Fraction of the tokens in packed sequences of max_length tokens that are not padding. Range [0, 1]."""
    num_epochs: float
    """Epochs that the steps are counted for."""
    num_packed_sequences: int
    """Sequences of at most max_length tokens into which packing puts the rows of one epoch."""
    num_rows: int
    """Rows of one epoch: the number of sequences without packing."""


@dataclass(frozen=True, kw_only=True)
class ValidationReport(Resource):
    """Problems and statistics of a job's data."""

    verdict: Verdict | None
    """Overall verdict."""
    problems: tuple[RowProblem, ...]
    """The first problems of each kind: at most 100 per kind and 1,000 in total."""
    counts: tuple[ProblemCount, ...]
    """Number of problems by source and kind: errors first, the most frequent first."""
    num_problems: int
    """Total number of problems."""
    training_data: DataStatistics | None
    """Statistics of the rows that would be trained on, without rows with errors. None if nothing was counted."""
    evaluation_data: DataStatistics | None
    """Statistics of the held-out rows. None if nothing was counted."""
    job: JobFigures | None
    """Figures of a job on these rows with the recipe's values. None if nothing was counted."""


@dataclass(frozen=True, kw_only=True)
class TokenSpan(Resource):
    """A range of consecutive tokens."""

    start: int
    """Index of the first token, from 0."""
    end: int
    """Index after the last token."""


@dataclass(frozen=True, kw_only=True)
class RowPreview(Resource):
    """A row as training will see it, or its problem."""

    row: int
    """Number of the row, from 1."""
    text: str
    """The rendered text before truncation, including the begin and end tokens that input_ids contains."""
    tokens: tuple[str, ...]
    """The text of each token. If a character spans several tokens, the last one has it and the others are empty."""
    input_ids: tuple[int, ...]
    """The id of each token."""
    labels: tuple[int, ...]
    """For each token its id if it is trained, otherwise -100."""
    truncated: bool
    """True if the row was truncated."""
    trained_spans: tuple[TokenSpan, ...]
    """Ranges of consecutive trained tokens."""
    problem: RowProblem | None
    """The problem of the row. If set, all fields above except `row` are empty. With severity WARNING the row would be
    dropped, or was repaired; the repaired row follows this one."""
    dropped: bool
    """True if training drops the row: no token of it would be trained, or it exceeds max_length and truncation is DROP.
    The tokens are then shown untruncated."""
