"""Tables of a preflight report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console

from finetuneflow.cli.advice import as_typed
from finetuneflow.cli.console import error_console, visible_cell
from finetuneflow.cli.estimate_tables import print_estimate
from finetuneflow.cli.exits import USAGE
from finetuneflow.cli.session import print_json, print_rows, size
from finetuneflow.cli.validation_tables import figures, print_problem, show_problems
from finetuneflow.resources.preflight import Finding, Preflight
from finetuneflow.resources.validation import ProblemSeverity, Verdict
from finetuneflow.setting_names import Translation

_CHECKING = "Checking the job: its rows are read and tokenized ..."
_VERDICTS = {
    Verdict.OK: "The job would run.",
    Verdict.WARNINGS: "The job would run, with warnings.",
    Verdict.REFUSED: "The job would be refused.",
}


@contextmanager
def checking() -> Iterator[Callable[[str, int, int], None]]:
    """Shows on a terminal that a job is checked, until the block ends. What it yields is called with the name of a file
    that is uploaded, the bytes sent and all of them."""
    with error_console().status(_CHECKING) as status:

        def uploading(name: str, done: int, total: int) -> None:
            text = f"Uploading {visible_cell(name)}: {size(done)} of {size(total)}"
            status.update(text if done < total else _CHECKING)

        yield uploading


def show_preflight(console: Console, found: Preflight, translations: Sequence[Translation] = (), *, json: bool) -> None:
    """Prints the report after the translated settings, and ends the command with exit code 2 if the job would be
    refused."""
    if json:
        print_json(found.proto, translations=[each.to_dict() for each in translations])
    else:
        print_translations(console, translations)
        print_preflight(console, found)
    if found.refused:
        raise typer.Exit(USAGE)


def print_translations(console: Console, translations: Sequence[Translation]) -> None:
    """Prints each translated or implied setting as a line."""
    for translation in translations:
        console.print(visible_cell(str(translation)))
    if translations:
        console.print("")


def print_preflight(console: Console, found: Preflight) -> None:
    """Prints refusals, model, dataset, settings with reasons, estimate, improvements, problems and findings, then the
    refusals again and the verdict. The refusal of a whole file is printed once, before the verdict."""
    model = found.result.base_model
    named = f"{model.id} {model.revision}".strip()
    refusals = [finding for finding in found.report.findings if finding.severity == ProblemSeverity.ERROR]
    rows = found.report.validation
    of_files = {problem.message for problem in rows.problems if not problem.row}
    for finding in refusals:
        if finding.message not in of_files:
            _print_finding(console, finding)
    console.print(
        f"{named}: {model.architecture}{', ' if model.architecture else ''}{model.num_parameters:,} parameters\n"
    )
    if rows.training_data is not None and rows.training_data.num_examples:
        held_out = rows.evaluation_data.num_examples if rows.evaluation_data is not None else 0
        counted = [*figures(rows, rows.training_data), ["Held-out rows", f"{held_out:,}"]]
        print_rows(console, ["DATASET", "VALUE"], counted)
        console.print("")
    print_rows(console, ["SETTING", "VALUE", "REASON"], ([r.field, r.value, r.reason] for r in found.resolutions))
    console.print("")
    print_estimate(console, found.estimate, time_unknown="the rows were refused")
    if found.report.improvements:
        console.print("")
        better = ([i.field, i.current, i.suggested, i.reason] for i in found.report.improvements)
        print_rows(console, ["IMPROVEMENT", "FROM", "TO", "REASON"], better)
    console.print("")
    show_problems(console, rows, {finding.message for finding in refusals})
    for finding in found.report.findings:
        if finding not in refusals:
            _print_finding(console, finding)
    # Refusals are printed first and last: many lines of settings and rows may stand between.
    for finding in refusals:
        _print_finding(console, finding)
    if found.report.verdict is not None:
        console.print(_VERDICTS.get(found.report.verdict, str(found.report.verdict)))


def _print_finding(console: Console, finding: Finding) -> None:
    said = " ".join(part for part in (finding.message, as_typed(finding.advice)) if part)
    print_problem(console, finding.severity, f"{said} [{finding.reason}]")
    # Those of datasets are printed with the rows, and the message names the first one.
    of_sets = [each for each in finding.violations if each.field.startswith("evaluation.")]
    for violation in of_sets[1:]:
        console.print(f"  {violation.field}: {violation.description}")
