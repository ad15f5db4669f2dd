"""`ftf datasets stats` and `ftf datasets preview`: what a training would make of the rows of a dataset.

A file is read on this machine if the server's package is installed and `--address` is not set; otherwise it is uploaded
and the server reads it. A dataset that was uploaded before is always read by the server.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.console import error_console, visible
from finetuneflow.cli.data_options import (
    ChatTemplate,
    Format,
    Map,
    MaxLength,
    SystemPrompt,
    Template,
    TruncationSide,
    reading_settings,
    source_settings,
)
from finetuneflow.cli.exits import USAGE, CommandFailed
from finetuneflow.cli.session import Json, Session, print_json, print_rows, session, size
from finetuneflow.cli.validation_tables import figures, histogram, print_problem, show_problems
from finetuneflow.datasets import data_source, truncation_number
from finetuneflow.errors import Violation
from finetuneflow.fields import INT64_MAX, fill
from finetuneflow.files import utf8_path
from finetuneflow.resources.validation import ProblemSeverity, RowPreview, ValidationReport, Verdict
from finetuneflow.spec import is_dataset_id
from finetuneflow.v1 import dataset_service_pb2 as pb

_Data = Annotated[str, typer.Argument(metavar="DATA", help="File of rows, or dataset id.")]
_Model = Annotated[str, typer.Option("--model", "-m", help="Base model; its tokenizer and chat template are used.")]


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
    """Count the rows and tokens of DATA, and the steps of a job on it; exit code 2 if a job would be refused."""
    here = session(ctx)
    more = reading_settings(max_length, truncation, system_prompt, chat_template)
    report = _validate(here, data, model, source_settings(mapping, template, format_), more, json=json)
    found = report.training_data
    counted = found if found is not None and found.num_examples else None
    refused = counted is None or report.verdict == Verdict.REFUSED
    if json:
        print_json(report.proto)
    else:
        if counted is not None:
            print_rows(here.console, ["DATASET", ""], figures(report, counted))
            print_rows(here.console, ["TOKENS", "ROWS", ""], histogram(counted))
        if refused:
            show_problems(here.console, report)
    if refused:
        raise typer.Exit(USAGE)


def preview(
    ctx: typer.Context,
    data: _Data,
    model: _Model,
    row: Annotated[int, typer.Option(min=1, max=INT64_MAX, help="First row to show, counted from 1.")] = 1,
    rows: Annotated[int, typer.Option(min=1, max=100, help="Number of rows.")] = 3,
    tokens: Annotated[bool, typer.Option("--tokens", help="Print one token per line, with its id.")] = False,
    mapping: Map = None,
    template: Template = None,
    format_: Format = None,
    max_length: MaxLength = None,
    truncation: TruncationSide = None,
    system_prompt: SystemPrompt = None,
    chat_template: ChatTemplate = None,
    json: Json = False,
) -> None:
    """Show rows of DATA as the training reads them, with the trained text highlighted; exit code 2 if one of the shown
    rows would refuse a job."""
    here = session(ctx)
    source = source_settings(mapping, template, format_)
    more = reading_settings(max_length, truncation, system_prompt, chat_template)
    found = _preview(here, data, model, source, row, rows, more, json=json)
    if not found:
        message = f"{data} has no row {row:,} or later."
        raise CommandFailed(message, violations=[Violation("--row", message)])
    if json:
        print_json(*(each.proto for each in found))
    else:
        for each in found:
            _show_row(here, each, tokens=tokens)
    if any(each.problem is not None and each.problem.severity == ProblemSeverity.ERROR for each in found):
        raise typer.Exit(USAGE)


def _validate(
    here: Session, data: str, model: str, source: dict[str, Any], more: dict[str, Any], *, json: bool
) -> ValidationReport:
    file = Path(data)
    if here.local_probe is not None and file.is_file():
        file = utf8_path(file.absolute())
        request = pb.ValidateDatasetRequest(source=data_source({**source, "dataset": data}))
        fill(request, base_model=model, **_numbered(more))
        return ValidationReport.from_proto(here.local_probe.validate(request, {data: file}).report)
    return here.client.datasets.validate({**source, "dataset": _uploaded(here, data, json=json)}, model, **more)


def _preview(
    here: Session,
    data: str,
    model: str,
    source: dict[str, Any],
    first_row: int,
    num_rows: int,
    more: dict[str, Any],
    *,
    json: bool,
) -> tuple[RowPreview, ...]:
    file = Path(data)
    if here.local_probe is not None and file.is_file():
        file = utf8_path(file.absolute())
        request = pb.PreviewDatasetRequest(source=data_source({**source, "dataset": data}))
        fill(request, base_model=model, first_row=first_row, num_rows=num_rows, **_numbered(more))
        return tuple(RowPreview.from_proto(row) for row in here.local_probe.preview(request, {data: file}).rows)
    dataset = {**source, "dataset": _uploaded(here, data, json=json)}
    return here.client.datasets.preview(dataset, model, first_row=first_row, num_rows=num_rows, **more)


def _uploaded(here: Session, data: str, *, json: bool) -> str:
    """Returns the dataset's id or hub reference; uploads a file."""
    if not Path(data).is_file():
        if Path(data).is_dir():
            raise typer.BadParameter(f"{data} is a folder; name one of its files.", param_hint="DATA")
        if not is_dataset_id(data):
            raise typer.BadParameter(
                f"No such file: {data} (a dataset id starts with ds_, a hub dataset with hf://).", param_hint="DATA"
            )
        return data
    dataset = here.client.datasets.upload(data)
    if not json:
        command = ftf(f"datasets delete {dataset.id}")
        error_console().print(
            f"The server keeps {dataset.filename} as {dataset.id}. To delete it: {command}", style="dim"
        )
    return dataset.id


def _numbered(values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "truncation": truncation_number(values.get("truncation"))}


def _show_row(here: Session, row: RowPreview, *, tokens: bool) -> None:
    console = here.console
    if row.problem is not None:
        problem = row.problem
        print_problem(console, problem.severity, f"row {row.row}: {problem.message} [{problem.reason}]")
        return
    trained = sum(span.end - span.start for span in row.trained_spans)
    cut = ", truncated" if row.truncated else ""
    cut += ", dropped" if row.dropped else ""
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
