"""`ftf validate`: all checks of a job before it exists.

Files are read on this machine, and the job is planned for it, if the server's package is installed and `--address` is
not set; otherwise they are uploaded and the server checks them. Uploaded datasets are always read by the server, and
tuned models are known to it alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from finetuneflow.cli.config import CONFIG_HELP, apply_setting, override, read_config
from finetuneflow.cli.data_options import (
    ChatTemplate,
    Format,
    Map,
    MaxLength,
    MaxSamples,
    MaxTokens,
    SystemPrompt,
    Template,
    TruncationSide,
    source_settings,
    sources,
)
from finetuneflow.cli.preflight_tables import checking, show_preflight
from finetuneflow.cli.refusals import every_refusal
from finetuneflow.cli.session import Json, Session, session
from finetuneflow.cli.text_files import read_text
from finetuneflow.resources.preflight import Preflight
from finetuneflow.spec import SpecDraft, draft_spec
from finetuneflow.v1 import probe_service_pb2 as pb


def validate(
    ctx: typer.Context,
    data: Annotated[
        list[str] | None, typer.Argument(help="Files of rows, dataset ids or hf://owner/name.", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Base model; see `ftf models list`.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Preset; see `ftf recipes list`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Field of the job, such as lora.r=32. Repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help=CONFIG_HELP, exists=True, dir_okay=False)] = None,
    mapping: Map = None,
    template: Template = None,
    format_: Format = None,
    max_samples: MaxSamples = None,
    max_tokens: MaxTokens = None,
    max_length: MaxLength = None,
    truncation: TruncationSide = None,
    system_prompt: SystemPrompt = None,
    chat_template: ChatTemplate = None,
    node: Annotated[str, typer.Option(help="Id of the node to plan the job for.")] = "",
    json: Json = False,
) -> None:
    """Run all checks without creating a job; exit code 2 if it would be refused."""
    values: dict[str, Any] = read_config(config) if config else {}
    rows = sources(data or [], source_settings(mapping, template, format_, max_samples, max_tokens))
    flags = {"training_data": rows, "base_model": model, "recipe": recipe, "system_prompt": system_prompt}
    override(values, flags)
    if chat_template is not None:
        values["chat_template"] = read_text(chat_template)
    if max_length is not None:
        apply_setting(values, f"hyperparameters.max_length={max_length}")
    if truncation is not None:
        apply_setting(values, f"hyperparameters.truncation={truncation}")
    for setting in settings or []:
        apply_setting(values, setting)
    here = session(ctx)
    with every_refusal(
        values, here.client.probe.ask_estimate if here.local_probe is None else here.local_probe.estimate
    ):
        draft = draft_spec(values)
    with checking():
        found = _preflight(here, values, draft, node)
    show_preflight(here.console, found, draft.translations, json=json)


def _preflight(here: Session, values: dict[str, Any], draft: SpecDraft, node: str) -> Preflight:
    probe = here.local_probe
    named = [*draft.spec.training_data, *draft.spec.evaluation_data]
    named += [source for phase in draft.spec.phases for source in phase.training_data]
    sets = (draft.spec.evaluation.questions, draft.spec.evaluation.regression)
    has_uploaded = any(name.startswith("ds_") for name in (*sets, *(source.dataset for source in named)))
    has_start = bool(draft.spec.start_from) or draft.spec.base_model.startswith("ft:")
    if probe is None or node or has_uploaded or has_start:
        return here.client.jobs.preflight(spec=values, node_id=node)
    names = {str(file.path) if file.field == "dataset" else f"ds_{file.path}": file for file in draft.files}
    for name, file in names.items():
        file.name(name)
    request = pb.PreflightFineTuningJobRequest(spec=draft.spec)
    return Preflight.from_proto(probe.preflight(request, {name: file.path for name, file in names.items()}))
