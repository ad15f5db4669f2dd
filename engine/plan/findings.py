"""Converts the statistics and row problems of `engine.data` to messages."""

from engine.config.curriculum import Curriculum
from engine.config.job import JobConfig
from engine.config.steps import steps_per_epoch
from engine.data.prepare import Prepared
from engine.data.statistics import Statistics
from engine.data.validation import Problem, Report
from engine.plan.job_steps import job_steps
from finetuneflow.v1.stage_result_pb2 import DataStatistics, LanguageCount, PhaseStatistics
from finetuneflow.v1.validation_pb2 import (
    JobFigures,
    ProblemCount,
    RowProblem,
    ValidationReport,
)


def data_statistics(counted: Statistics) -> DataStatistics:
    """Converts the statistics of a set of rows."""
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
        num_too_long=counted.num_too_long,
        languages=[
            LanguageCount(role=role, language=language, num_texts=number)
            for role, languages in sorted(counted.languages.items())
            for language, number in sorted(languages.items(), key=lambda entry: (-entry[1], entry[0]))
        ],
    )


def phase_statistics(config: JobConfig, prepared: Prepared) -> list[PhaseStatistics]:
    """Returns the statistics of each phase of a curriculum; an empty list for a job without phases."""
    if not config.phases:
        return []
    packing = bool(config.hyperparameters.packing)
    curriculum = Curriculum.of(config, [one.num_sequences(packing=packing) for one in prepared.phases])
    return [
        PhaseStatistics(
            display_name=phase.display_name,
            num_epochs=phase.num_epochs,
            first_step=curriculum.first_step(index),
            training_data=data_statistics(counted.train),
            num_packed_sequences=counted.num_packed,
        )
        for index, (phase, counted) in enumerate(zip(config.phases, prepared.phases, strict=True))
    ]


def packing_efficiency(prepared: Prepared, max_length: int) -> float:
    """Returns the share of tokens in packed sequences that are not padding."""
    room = prepared.num_packed * max_length
    return prepared.train.num_tokens / room if room else 0.0


def validation_report(report: Report, prepared: Prepared | None, config: JobConfig) -> ValidationReport:
    """Converts the row problems and, unless `prepared` is None (no row could be counted), the statistics."""
    found = ValidationReport(
        verdict=f"VALIDATION_VERDICT_{report.verdict.upper()}",
        problems=[row_problem(problem) for problem in report.ordered()],
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
        found.job.CopyFrom(_figures(prepared, config))
    return found


def row_problem(problem: Problem) -> RowProblem:
    """Converts one row problem."""
    return RowProblem(
        row=problem.row,
        column=problem.column,
        reason=problem.reason,
        message=problem.message,
        source=problem.source,
        severity=_severity(problem.severity),
    )


def _figures(prepared: Prepared, config: JobConfig) -> JobFigures:
    train, hyper = prepared.train, config.hyperparameters
    return JobFigures(
        tokens_per_epoch=train.num_tokens,
        total_steps=job_steps(config, prepared, packing=False) if train.num_examples else 0,
        total_steps_packed=job_steps(config, prepared, packing=True) if train.num_examples else 0,
        packing_efficiency=packing_efficiency(prepared, hyper.max_length),
        num_epochs=_num_epochs(prepared, config),
        num_packed_sequences=prepared.num_packed,
        num_rows=train.num_examples,
    )


def _num_epochs(prepared: Prepared, config: JobConfig) -> float:
    """Returns the epochs over the training rows; for a curriculum, the sum over its phases."""
    hyper = config.hyperparameters
    if config.phases:
        return sum(phase.num_epochs for phase in config.phases)
    if hyper.max_steps is not None:
        sequences = prepared.num_packed if hyper.packing else prepared.train.num_examples
        return hyper.max_steps / steps_per_epoch(sequences, config)
    return hyper.num_epochs


def _severity(severity: str) -> str:
    return f"PROBLEM_SEVERITY_{severity.upper()}"
