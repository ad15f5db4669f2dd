"""`ftf train`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.config import CONFIG_HELP, apply_setting, override, read_config, toml_text
from finetuneflow.cli.console import error_console, visible_cell
from finetuneflow.cli.data_options import Format, Map, MaxSamples, MaxTokens, Template, source_settings, sources
from finetuneflow.cli.download import make_folder, print_downloaded
from finetuneflow.cli.following import follow_or_detach
from finetuneflow.cli.preflight_tables import checking, show_preflight
from finetuneflow.cli.refusals import every_refusal
from finetuneflow.cli.session import Json, print_json, session, size
from finetuneflow.setting_names import JOB_RULES, OUTPUT, Translated, translate


def train(
    ctx: typer.Context,
    data: Annotated[
        list[str] | None,
        typer.Argument(
            help="Datasets to train on: files, folders, dataset ids or hf://owner/name.", show_default=False
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Base model; see `ftf models list`.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe; see `ftf recipes list`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field of the job, such as lora.r=32. Repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP, exists=True, dir_okay=False)] = None,
    name: Annotated[str | None, typer.Option(help="Display name of the job.")] = None,
    evaluation: Annotated[
        list[str] | None,
        typer.Option("--eval", help="Dataset to evaluate on: file, dataset id or hf://owner/name. Repeatable."),
    ] = None,
    mapping: Map = None,
    template: Template = None,
    format_: Format = None,
    max_samples: MaxSamples = None,
    max_tokens: MaxTokens = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder to download the package into when the job has succeeded.",
            show_default="output_dir of the file",
            file_okay=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Run all checks without creating a job; exit code 2 if the job would be refused."
        ),
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", "-d", help="Create the job without following it.")] = False,
    json: Json = False,
) -> None:
    """Fine-tune a model on datasets and follow the job live."""
    here = session(ctx)
    values: dict[str, Any] = read_config(config) if config else {}
    rows = source_settings(mapping, template, format_)
    flags = {
        "training_data": sources(data or [], source_settings(mapping, template, format_, max_samples, max_tokens)),
        "base_model": model,
        "recipe": recipe,
        "display_name": name,
        "evaluation_data": evaluation and sources(evaluation, rows),
    }
    override(values, flags)
    for setting in settings or []:
        apply_setting(values, setting)
    translated = translate(values, JOB_RULES)
    out = out or _output_folder(translated)
    if out and not dry_run:
        make_folder(out)
    if dry_run:
        with every_refusal(values, here.client.probe.ask_estimate), checking() as uploading:
            found = here.client.jobs.preflight(spec=values, on_upload=uploading)
        if not json:
            here.console.print(f"{toml_text(found.resolved_spec)}\n")
        show_preflight(here.console, found, translated.changed, json=json)
        return
    if not json:
        for translation in translated.changed:
            error_console().print(str(translation), style="dim")
    progress = None if json or not here.console.is_terminal else _Uploads()
    with every_refusal(values, here.client.probe.ask_estimate):
        job = here.client.jobs.create(spec=values, on_upload=progress)
    if detach:
        if json:
            print_json(job.proto)
        else:
            here.console.print(f"Job {job.id}\nFollow it: {ftf(f'jobs watch {job.id}')}")
            if out:
                here.console.print(f"Download its package: {ftf(f'download {job.id} --out {shlex.quote(str(out))}')}")
    else:
        if not json:
            here.console.print(f"Job {job.id}")
        follow_or_detach(here, job.id, json=json)
        if out:
            print_downloaded(here.console, here.client.jobs.download(job.id, out), as_json=json)


def _output_folder(translated: Translated) -> Path | None:
    """Returns the folder that `output_dir` of the settings names."""
    given = [value for each in translated.translations for name, value in each.given.items() if name == OUTPUT]
    return Path(given[0]).expanduser() if given and isinstance(given[0], str) else None


class _Uploads:
    """Prints the progress of uploads on a terminal, one line per file."""

    def __call__(self, name: str, done: int, total: int) -> None:
        typer.echo(f"\rUploading {visible_cell(name)}: {size(done)} of {size(total)}", nl=done >= total, err=True)
