"""`ftf datasets stats` and `ftf datasets preview`: what a training would make of rows.

A file is looked at on this machine where the server's package is installed and no `--address` says otherwise; else it
is uploaded, and the server looks. Datasets that were uploaded are the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.text import Text

from finetuneflow.cli.console import visible
from finetuneflow.cli.exits import USAGE, CommandFailed, named_rows
from finetuneflow.cli.session import Json, Session, count, print_json, print_rows, session, size
from finetuneflow.cli.text_files import read_text
from finetuneflow.datasets import data_source, truncation_number
from finetuneflow.errors import Violation
from finetuneflow.fields import INT32_MAX, INT64_MAX, fill
from finetuneflow.files import utf8_path
from finetuneflow.resources.stage_result import DataStatistics
from finetuneflow.resources.validation import ProblemSeverity, RowPreview, ValidationReport, Verdict
from finetuneflow.spec import is_dataset_id
from finetuneflow.v1 import dataset_service_pb2 as pb

_SHOWN = 20


class Here(Protocol):
    """Looks at a file on this machine. Its methods raise InvalidArgument or CommandFailed."""

    def validate(self, request: pb.ValidateDatasetRequest, file: Path) -> pb.ValidateDatasetResponse: ...
    def preview(self, request: pb.PreviewDatasetRequest, file: Path) -> pb.PreviewDatasetResponse: ...


_Data = Annotated[str, typer.Argument(metavar="DATA", help="A file of rows, or a dataset's id.")]
_Model = Annotated[str, typer.Option("--model", "-m", help="Base model, whose tokenizer and template are used.")]
Map = Annotated[
    list[str] | None, typer.Option("--map", help="A column, ours=theirs, such as question=prompt; as often as needed.")
]
Template = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="A file with a template that turns rows into examples.")
]
Format = Annotated[str | None, typer.Option("--format", help="What the rows are.", show_default="detected")]
MaxLength = Annotated[int | None, typer.Option(max=INT32_MAX, help="Tokens of a row.", show_default="2048")]
TruncationSide = Annotated[
    str | None,
    typer.Option("--truncation", help="Of longer rows: keep_start, keep_end or drop.", show_default="keep_start"),
]
SystemPrompt = Annotated[str | None, typer.Option("--system-prompt", help="Put before conversations without one.")]
ChatTemplate = Annotated[
    Path | None,
    typer.Option(
        "--chat-template", exists=True, dir_okay=False, help="File with a chat template to use instead of the model's."
    ),
]


def add_commands(datasets: typer.Typer, here: Here | None = None) -> None:
    """Adds what is not there yet; `here` is what the server distribution brings."""
    looking = _Looking(here)
    present = {info.name or getattr(info.callback, "__name__", "") for info in datasets.registered_commands}
    for command in (_stats(looking), _preview(looking)):
        if command.__name__ not in present:
            datasets.command()(command)


class _Looking:
    """Finds out who looks."""

    def __init__(self, here: Here | None) -> None:
        self._here = here

    def validate(self, at: Session, data: str, model: str, source: Mapping[str, Any], **more: Any) -> ValidationReport:
        file = Path(data)
        if self._is_here(at, file) and self._here is not None:
            request = pb.ValidateDatasetRequest(source=data_source({**source, "dataset": "file"}))
            fill(request, base_model=model, **_numbered(more))
            return ValidationReport.from_proto(self._here.validate(request, utf8_path(file.absolute())).report)
        return at.client.datasets.validate({**source, "dataset": _uploaded(at, data)}, model, **more)

    def preview(
        self, at: Session, data: str, model: str, source: Mapping[str, Any], first_row: int, num_rows: int, **more: Any
    ) -> tuple[RowPreview, ...]:
        file = Path(data)
        if self._is_here(at, file) and self._here is not None:
            request = pb.PreviewDatasetRequest(source=data_source({**source, "dataset": "file"}))
            fill(request, base_model=model, first_row=first_row, num_rows=num_rows, **_numbered(more))
            return tuple(
                RowPreview.from_proto(row) for row in self._here.preview(request, utf8_path(file.absolute())).rows
            )
        dataset = {**source, "dataset": _uploaded(at, data)}
        return at.client.datasets.preview(dataset, model, first_row=first_row, num_rows=num_rows, **more)

    def _is_here(self, at: Session, file: Path) -> bool:
        return self._here is not None and at.address is None and file.is_file()


def _uploaded(at: Session, data: str) -> str:
    if not Path(data).is_file():
        if not is_dataset_id(data):
            raise typer.BadParameter(
                f"no such file: {data} (a dataset id starts with ds_, one of the hub with hf://)", param_hint="DATA"
            )
        return data
    return at.client.datasets.upload(data).id


def _numbered(values: Mapping[str, Any]) -> dict[str, Any]:
    return {**values, "truncation": truncation_number(values.get("truncation"))}


def source_settings(mapping: list[str] | None, template: Path | None, format_: str | None) -> dict[str, Any]:
    """The fields of a source that options stand for; those that are not given are left out."""
    pairs = dict(entry.split("=", 1) for entry in mapping or [] if "=" in entry)
    if len(pairs) != len(mapping or []):
        raise typer.BadParameter("write ours=theirs, such as question=prompt, each of ours once", param_hint="--map")
    text = read_text(template) if template else None
    fields = {"mapping": pairs or None, "template": text, "format": format_}
    return {name: value for name, value in fields.items() if value is not None}


def _reading(
    max_length: int | None, truncation: str | None, system_prompt: str | None, chat_template: Path | None
) -> dict[str, Any]:
    """The fields of a request that say how rows are read."""
    return {
        "max_length": max_length,
        "truncation": truncation,
        "system_prompt": system_prompt,
        "chat_template": read_text(chat_template) if chat_template else None,
    }


def sources(data: list[str], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The data of a job, each with what `source_settings` says."""
    if settings and not data:
        raise typer.BadParameter("name the files that --map, --template and --format are about.", param_hint="DATA")
    return [{**settings, "dataset": each} for each in data]


def _stats(looking: _Looking) -> Callable[..., None]:
    def stats(
        ctx: typer.Context,
        data: _Data,
        model: _Model,
        mapping: Map = None,
        template: Template = None,
        format_: Format = None,
        max_length: MaxLength = None,
        truncation: TruncationSide = None,
        system_prompt: SystemPrompt = None,
        chat_template: ChatTemplate = None,
        json: Json = False,
    ) -> None:
        """Count the rows and tokens of DATA, and the steps of a job on it. Exit code 2: a job would be refused."""
        here = session(ctx)
        more = _reading(max_length, truncation, system_prompt, chat_template)
        report = looking.validate(here, data, model, source_settings(mapping, template, format_), **more)
        found = report.training_data
        counted = found if found is not None and found.num_examples else None
        refused = counted is None or report.verdict == Verdict.REFUSED
        if json:
            print_json(report.proto)
        else:
            if counted is not None:
                print_rows(here.console, ["OF THE ROWS", ""], figures(report, counted))
                print_rows(here.console, ["TOKENS", "ROWS", ""], _histogram(counted))
            if refused:
                show_problems(here.console, report)
        if refused:
            raise typer.Exit(USAGE)

    return stats


def _preview(looking: _Looking) -> Callable[..., None]:
    def preview(
        ctx: typer.Context,
        data: _Data,
        model: _Model,
        row: Annotated[int, typer.Option(min=1, max=INT64_MAX, help="First row, as an editor numbers lines.")] = 1,
        rows: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 3,
        tokens: Annotated[bool, typer.Option("--tokens", help="Token by token, with ids.")] = False,
        mapping: Map = None,
        template: Template = None,
        format_: Format = None,
        max_length: MaxLength = None,
        truncation: TruncationSide = None,
        system_prompt: SystemPrompt = None,
        chat_template: ChatTemplate = None,
        json: Json = False,
    ) -> None:
        """Show rows of DATA as training will see them; what is trained stands out."""
        here = session(ctx)
        source = source_settings(mapping, template, format_)
        more = _reading(max_length, truncation, system_prompt, chat_template)
        found = looking.preview(here, data, model, source, row, rows, **more)
        if not found:
            said = f"{data} has no row {row:,} or later."
            raise CommandFailed(said, violations=[Violation("--row", said)])
        if json:
            print_json(*(each.proto for each in found))
            return
        for each in found:
            _show_row(here, each, tokens=tokens)

    return preview


def show_problems(console: Console, report: ValidationReport) -> None:
    """The first ones, all of them counted. What is wrong with several rows in the same words is said once."""
    shared: dict[tuple[str, ProblemSeverity | None, str, str], list[str]] = {}
    for problem in report.problems:
        said = (problem.source, problem.severity, problem.message, problem.reason)
        shared.setdefault(said, []).append(str(problem.row) if problem.row else "")
    shown = list(shared.items())[:_SHOWN]
    several = len({problem.source for problem in report.problems}) > 1
    for (source, severity, message, reason), rows in shown:
        style = "red" if severity == ProblemSeverity.ERROR else "yellow"
        place = " ".join(part for part in (source if several else "", named_rows(rows) if rows[0] else "") if part)
        console.print(f"{place}{': ' if place else ''}{message} [{reason}]", style=style)
    if report.num_problems > sum(len(rows) for _, rows in shown):
        kinds = ", ".join(f"{each.count:,} {each.reason}" for each in report.counts)
        console.print(f"{count(report.num_problems, 'problem')} in all: {kinds}. --json lists up to 100 of a kind.")


def figures(report: ValidationReport, counted: DataStatistics) -> Iterable[list[str]]:
    """Rows of a table: what there is to train on."""
    yield ["Format", counted.format or "unknown"]
    yield ["Examples", f"{counted.num_examples:,}"]
    unwritten = any(each.reason == "TEMPLATE_WROTE_NOTHING" for each in report.counts)
    left_out = {
        f"incomplete{' or not written by the template' * unwritten}": counted.num_left_out,
        "duplicates": counted.num_duplicates,
        "without anything to train": counted.num_dropped,
        "too long": counted.num_too_long,
    }
    if any(left_out.values()):
        yield ["Left out", ", ".join(f"{number:,} {what}" for what, number in left_out.items() if number)]
    share = counted.num_trained_tokens / counted.num_tokens if counted.num_tokens else 0
    yield ["Tokens", f"{counted.num_tokens:,}, of which {counted.num_trained_tokens:,} ({share:.0%}) are trained"]
    lengths = ", ".join(f"{percent} % up to {tokens:,}" for percent, tokens in sorted(counted.percentiles.items()))
    yield ["Tokens of a row", f"mean {counted.mean_tokens:,.0f}, longest {counted.max_tokens:,}; {lengths}"]
    yield ["Truncated", f"{counted.num_truncated:,} of the examples"]
    if counted.roles:
        yield ["Turns", ", ".join(f"{number:,} {role}" for role, number in sorted(counted.roles.items()))]
    scripts = sorted(counted.scripts.items(), key=lambda entry: -entry[1])[:5]
    yield ["Writing", ", ".join(f"{number:,} {script or 'without letters'}" for script, number in scripts)]
    for role in dict.fromkeys(each.role for each in counted.languages):
        spoken = [each for each in counted.languages if each.role == role]
        shown = ", ".join(f"{each.num_texts:,} {each.language or 'unclear'}" for each in spoken[:5])
        yield [f"Languages of {role}", f"{shown}{', …' if len(spoken) > 5 else ''}"]
    if report.job is not None:
        job = report.job
        sequences = f"{job.num_packed_sequences:,} sequences of {job.num_rows:,} rows"
        yield ["Packing", f"{sequences}, {job.packing_efficiency:.0%} of their tokens no padding"]
        packed = f"{job.total_steps_packed:,} packed"
        nothing = "" if report.evaluation_data is not None else ", nothing held out"
        yield ["Steps of a job", f"{job.total_steps:,}, or {packed}, for {job.num_epochs:g} epochs{nothing}"]


def _histogram(counted: DataStatistics) -> Iterable[list[str]]:
    most = max(counted.histogram.values(), default=1)
    for bound, rows in sorted(counted.histogram.items()):
        yield [f"up to {bound:,}", f"{rows:,}", "█" * max(1, round(40 * rows / most))]


def _show_row(here: Session, row: RowPreview, *, tokens: bool) -> None:
    console = here.console
    if row.problem is not None:
        console.print(f"row {row.row}: {row.problem.message} [{row.problem.reason}]", style="red")
        return
    trained = sum(span.end - span.start for span in row.trained_spans)
    cut = ", truncated" if row.truncated else ""
    cut += ", left out" if row.dropped else ""
    length = size(len(row.text.encode()))
    console.print(f"row {row.row}: {len(row.tokens):,} tokens, {trained:,} trained{cut}, {length}", style="bold")
    if tokens:
        marks = (["trained" if label >= 0 else "", str(id_), repr(token)] for token, id_, label in _each(row))
        print_rows(console, ["", "ID", "TOKEN"], marks)
        return
    text = Text()
    for token, _, label in _each(row):
        text.append(visible(token), style="green" if label >= 0 else "dim")
    console.print(text)
    if not console.is_terminal:
        for span in row.trained_spans:
            console.print(f"trained: {''.join(row.tokens[span.start : span.end])!r}")


def _each(row: RowPreview) -> Iterable[tuple[str, int, int]]:
    return zip(row.tokens, row.input_ids, row.labels, strict=True)
