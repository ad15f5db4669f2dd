"""What `engine.data` finds, as messages."""

from engine.config.job import Hyperparameters
from engine.data.prepare import Prepared
from engine.data.statistics import Statistics
from engine.data.validation import Problem, Report
from finetuneflow.v1.stage_result_pb2 import DataStatistics
from finetuneflow.v1.validation_pb2 import (
    JobFigures,
    ProblemCount,
    RowProblem,
    ValidationReport,
)
from services.probe.worker.resolve import total_steps


def data_statistics(counted: Statistics) -> DataStatistics:
    return DataStatistics(
        num_examples=counted.num_examples,
        num_tokens=counted.num_tokens,
        num_trained_tokens=counted.num_trained_tokens,
        num_truncated=counted.num_truncated,
        num_duplicates=counted.num_duplicates,
        num_dropped=counted.num_dropped,
        num_left_out=counted.num_left_out,
        max_tokens=counted.max_tokens,
        mean_tokens=counted.mean_tokens,
        format=counted.format,
        percentiles=counted.percentiles(),
        histogram=counted.histogram(),
        roles=counted.roles,
        scripts=counted.scripts,
    )


def validation_report(report: Report, prepared: Prepared | None, hyper: Hyperparameters) -> ValidationReport:
    """`prepared` is None where nothing could be counted."""
    found = ValidationReport(
        verdict=f"VALIDATION_VERDICT_{report.verdict.upper()}",
        problems=[row_problem(problem) for problem in report.problems],
        counts=[
            ProblemCount(
                source=count.source, reason=count.reason, severity=_severity(count.severity), count=count.count
            )
            for count in report.counts()
        ],
        num_problems=report.num_problems,
    )
    if prepared is not None:
        found.training_data.CopyFrom(data_statistics(prepared.train))
        if prepared.eval.num_examples:
            found.evaluation_data.CopyFrom(data_statistics(prepared.eval))
        found.job.CopyFrom(_figures(prepared, hyper))
    return found


def row_problem(problem: Problem) -> RowProblem:
    return RowProblem(
        row=problem.row,
        column=problem.column,
        reason=problem.reason,
        message=problem.message,
        source=problem.source,
        severity=_severity(problem.severity),
    )


def _figures(prepared: Prepared, hyper: Hyperparameters) -> JobFigures:
    train = prepared.train
    room = prepared.num_packed * hyper.max_length
    return JobFigures(
        tokens_per_epoch=train.num_tokens,
        total_steps=total_steps(train.num_examples, hyper) if train.num_examples else 0,
        total_steps_packed=total_steps(prepared.num_packed, hyper) if train.num_examples else 0,
        packing_efficiency=train.num_tokens / room if room else 0.0,
        num_epochs=hyper.num_epochs,
    )


def _severity(severity: str) -> str:
    return f"PROBLEM_SEVERITY_{severity.upper()}"
