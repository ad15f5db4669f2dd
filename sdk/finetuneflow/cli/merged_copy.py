"""`ftf models path ft:JOB`: a local copy of a job's merged model."""

from __future__ import annotations

import json as json_module
import os
from pathlib import Path
from typing import Any

import typer

from finetuneflow.cli.console import error_console
from finetuneflow.cli.download import progress_of
from finetuneflow.cli.session import Session, session
from finetuneflow.resources.export import Export
from finetuneflow.resources.stage_result import ExportedForm, ExportFormat

TUNED = "ft:"


def print_merged_copy(ctx: typer.Context, model: str, home: Path | None, *, as_json: bool) -> None:
    """Prints the folder of a merged copy of `ft:JOB` or `ft:JOB@STEP`, below `home`. Downloads it if it is missing,
    from a new export if no export of that checkpoint has the merged form with the job's own settings."""
    here = session(ctx)
    export = _export(here, model)
    folder = (home or Path(os.environ.get("FTF_HOME") or "~/.finetuneflow")).expanduser().absolute()
    to = folder / "exports" / export.id
    # Verified files that are there already are not downloaded again.
    here.client.exports.download(
        export.id, to, forms=[ExportFormat.MERGED], progress=progress_of(here, as_json=as_json)
    )
    path = next(to / form.path for form in _forms(export) if form.format == ExportFormat.MERGED)
    if as_json:
        typer.echo(json_module.dumps({"id": model, "export": export.id, "path": str(path)}))
    else:
        typer.echo(path)


def _export(here: Session, model: str) -> Export:
    """Returns the newest export of a checkpoint that has its merged model with the settings of the job; makes one if
    there is none."""
    job_id = model.removeprefix(TUNED).partition("@")[0]
    job: Any = here.client.jobs.get(job_id).proto
    own = job.resolved_spec.export
    export: Export
    for export in here.client.exports.list(job_id=job_id, states=["SUCCEEDED"]):
        message: Any = export.proto
        is_same = (message.spec.dtype, message.spec.merge_base) == (own.dtype, own.merge_base)
        if export.model == model and is_same and ExportFormat.MERGED in [form.format for form in _forms(export)]:
            return export
    made = here.client.exports.create(model, formats=["merged"], dtype=own.dtype, merge_base=own.merge_base)
    error_console().print(f"No export of {model} has its merged model; export {made.id} makes it ...", style="dim")
    export = here.client.exports.wait(made.id)
    return export


def _forms(export: Export) -> list[ExportedForm]:
    return [] if export.result is None else list(export.result.forms)
