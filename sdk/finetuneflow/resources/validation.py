"""What is wrong with data, and how its rows look to training."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.stage_result import DataStatistics


class Verdict(OpenEnum):
    """What follows from a report."""

    OK = "OK"
    WARNINGS = "WARNINGS"
    REFUSED = "REFUSED"


class ProblemSeverity(OpenEnum):
    """How bad a problem is: an error refuses a job."""

    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True, kw_only=True)
class RowProblem(Resource):
    """One thing wrong with one row; row 0 is the file as a whole."""

    row: int
    column: str
    reason: str
    message: str
    source: str
    severity: ProblemSeverity | None


@dataclass(frozen=True, kw_only=True)
class ProblemCount(Resource):
    """Problems of one kind in one source."""

    source: str
    reason: str
    severity: ProblemSeverity | None
    count: int


@dataclass(frozen=True, kw_only=True)
class JobFigures(Resource):
    """What data makes of a job."""

    tokens_per_epoch: int
    total_steps: int
    total_steps_packed: int
    packing_efficiency: float
    num_epochs: float
    num_packed_sequences: int
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class ValidationReport(Resource):
    """What is wrong with data, and what is suspicious about it."""

    verdict: Verdict | None
    problems: tuple[RowProblem, ...]
    counts: tuple[ProblemCount, ...]
    num_problems: int
    training_data: DataStatistics | None
    evaluation_data: DataStatistics | None
    job: JobFigures | None


@dataclass(frozen=True, kw_only=True)
class TokenSpan(Resource):
    """A run of tokens: index of the first, and behind the last."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class RowPreview(Resource):
    """One row as training will see it, or its problem."""

    row: int
    text: str
    tokens: tuple[str, ...]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    truncated: bool
    trained_spans: tuple[TokenSpan, ...]
    problem: RowProblem | None
    dropped: bool
