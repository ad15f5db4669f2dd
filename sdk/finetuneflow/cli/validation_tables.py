"""Prints the problems and statistics of rows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rich.console import Console

from finetuneflow.cli.exits import named_rows
from finetuneflow.cli.session import count
from finetuneflow.resources.stage_result import DataStatistics
from finetuneflow.resources.validation import ProblemSeverity, ValidationReport

_SHOWN = 20
"""Maximum number of problems that are printed."""


def print_problem(console: Console, severity: ProblemSeverity | None, text: str) -> None:
    """Prints a refusal or a warning. The first word is the only sign of its severity where there are no colours."""
    refusal = severity == ProblemSeverity.ERROR
    console.print(f"{'Refused' if refusal else 'Warning'}: {text}", style="red" if refusal else "yellow")


def show_problems(console: Console, report: ValidationReport, elsewhere: Collection[str] = ()) -> None:
    """Prints the first problems and the number of all; rows with the same problem share a line. Leaves out a problem of
    a whole file whose message is printed `elsewhere`."""
    shared: dict[tuple[str, ProblemSeverity | None, str, str], list[str]] = {}
    listed = [problem for problem in report.problems if problem.row or problem.message not in elsewhere]
    for problem in listed:
        said = (problem.source, problem.severity, problem.message, problem.reason)
        shared.setdefault(said, []).append(str(problem.row) if problem.row else "")
    shown = list(shared.items())[:_SHOWN]
    several = len({problem.source for problem in report.problems}) > 1
    for (source, severity, message, reason), rows in shown:
        place = " ".join(part for part in (source if several else "", named_rows(rows) if rows[0] else "") if part)
        print_problem(console, severity, f"{place}{': ' if place else ''}{message} [{reason}]")
    left_out = len(report.problems) - len(listed)
    if report.num_problems - left_out > sum(len(rows) for _, rows in shown):
        totals: dict[str, int] = {}
        for each in report.counts:
            totals[each.reason] = totals.get(each.reason, 0) + each.count
        kinds = ", ".join(f"{number:,} {reason}" for reason, number in totals.items())
        console.print(f"{count(report.num_problems, 'problem')} in total: {kinds}. --json lists up to 100 per kind.")


def figures(report: ValidationReport, counted: DataStatistics) -> Iterable[list[str]]:
    """Yields the rows of a table with the statistics of the training data."""
    yield ["Format", counted.format or "unknown"]
    yield ["Examples", f"{counted.num_examples:,}"]
    unwritten = any(each.reason == "TEMPLATE_WROTE_NOTHING" for each in report.counts)
    dropped = {
        f"incomplete{' or without output of the template' * unwritten}": counted.num_left_out,
        "duplicates": counted.num_duplicates,
        "without trained tokens": counted.num_dropped,
        "too long": counted.num_too_long,
    }
    if any(dropped.values()):
        yield ["Dropped", ", ".join(f"{number:,} {what}" for what, number in dropped.items() if number)]
    share = counted.num_trained_tokens / counted.num_tokens if counted.num_tokens else 0
    yield ["Tokens", f"{counted.num_tokens:,}, of which {counted.num_trained_tokens:,} ({share:.0%}) are trained"]
    lengths = ", ".join(f"{percent} % up to {tokens:,}" for percent, tokens in sorted(counted.percentiles.items()))
    yield ["Tokens per row", f"mean {counted.mean_tokens:,.0f}, longest {counted.max_tokens:,}; {lengths}"]
    yield ["Truncated", f"{counted.num_truncated:,} examples"]
    if counted.roles:
        yield ["Turns", ", ".join(f"{number:,} {role}" for role, number in sorted(counted.roles.items()))]
    scripts = sorted(counted.scripts.items(), key=lambda entry: -entry[1])[:5]
    yield ["Scripts", ", ".join(f"{number:,} {script or 'without letters'}" for script, number in scripts)]
    for role in dict.fromkeys(each.role for each in counted.languages):
        spoken = [each for each in counted.languages if each.role == role]
        shown = ", ".join(f"{each.num_texts:,} {each.language or 'unclear'}" for each in spoken[:5])
        yield [f"Languages of {role}", f"{shown}{', …' if len(spoken) > 5 else ''}"]
    if report.job is not None:
        job = report.job
        sequences = f"{count(job.num_rows, 'row')} fit into {count(job.num_packed_sequences, 'sequence')}"
        yield ["Packing", f"{sequences}, {1 - job.packing_efficiency:.0%} padding"]
        packed = f"{job.total_steps_packed:,} packed"
        nothing = "" if report.evaluation_data is not None else ", nothing held out"
        epochs = f"{job.num_epochs:g} {'epoch' if job.num_epochs == 1 else 'epochs'}"
        yield ["Steps of a job", f"{job.total_steps:,}, or {packed}, for {epochs}{nothing}"]


def histogram(counted: DataStatistics) -> Iterable[list[str]]:
    """Yields the rows of a table with the distribution of row lengths."""
    most = max(counted.histogram.values(), default=1)
    for bound, rows in sorted(counted.histogram.items()):
        yield [f"up to {bound:,}", f"{rows:,}", "█" * max(1, round(40 * rows / most))]
