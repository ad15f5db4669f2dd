"""How the report of a preflight looks."""

from __future__ import annotations

from rich.console import Console

from finetuneflow.cli.advice import as_typed
from finetuneflow.cli.estimate_tables import print_estimate
from finetuneflow.cli.looking import figures, show_problems
from finetuneflow.cli.session import print_rows
from finetuneflow.resources.preflight import Finding, Preflight
from finetuneflow.resources.validation import ProblemSeverity, Verdict

_VERDICTS = {
    Verdict.OK: "The job would run.",
    Verdict.WARNINGS: "The job would run. Look at the warnings first.",
    Verdict.REFUSED: "The job would be refused.",
}


def print_preflight(console: Console, found: Preflight) -> None:
    """Model, rows, settings with their reasons, what it takes, what would be better; last what follows."""
    model = found.result.base_model
    named = f"{model.id} {model.revision}".strip()
    refusals = [finding for finding in found.report.findings if finding.severity == ProblemSeverity.ERROR]
    for finding in refusals:
        _print_finding(console, finding)
    console.print(f"{named}: {model.architecture or 'unknown architecture'}, {model.num_parameters:,} parameters\n")
    rows = found.report.validation
    if rows.training_data is not None and rows.training_data.num_examples:
        held_out = rows.evaluation_data.num_examples if rows.evaluation_data is not None else 0
        counted = [*figures(rows, rows.training_data), ["Held out", f"{held_out:,}"]]
        print_rows(console, ["OF THE ROWS", ""], counted)
        console.print("")
    print_rows(console, ["SETTING", "VALUE", "WHY"], ([r.field, r.value, r.reason] for r in found.resolutions))
    console.print("")
    print_estimate(console, found.estimate)
    if found.report.improvements:
        console.print("")
        better = ([i.field, i.current, i.suggested, i.reason] for i in found.report.improvements)
        print_rows(console, ["BETTER", "FROM", "TO", "WHY"], better)
    console.print("")
    show_problems(console, rows)
    for finding in found.report.findings:
        if finding not in refusals:
            _print_finding(console, finding)
    # Last, and first of all: between them stand as many lines as there are settings and rows to speak of.
    for finding in refusals:
        _print_finding(console, finding)
    if found.report.verdict is not None:
        console.print(_VERDICTS.get(found.report.verdict, str(found.report.verdict)))


def _print_finding(console: Console, finding: Finding) -> None:
    refusal = finding.severity == ProblemSeverity.ERROR
    said = " ".join(part for part in (finding.message, as_typed(finding.advice)) if part)
    line = f"{'Refused' if refusal else 'Warning'}: {said} [{finding.reason}]"
    console.print(line, style="red" if refusal else "yellow")
