"""`ftf validate`: everything that can be known of a job before there is one.

Files are looked at on this machine, for this machine, where the server's package is installed and no `--address` says
otherwise; else they are uploaded, and the server looks. Datasets that were uploaded are the server's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from finetuneflow.cli.config import apply_setting, read_config
from finetuneflow.cli.exits import USAGE
from finetuneflow.cli.looking import (
    ChatTemplate,
    Format,
    Map,
    MaxLength,
    SystemPrompt,
    Template,
    TruncationSide,
    source_settings,
    sources,
)
from finetuneflow.cli.preflight_tables import print_preflight
from finetuneflow.cli.refusals import every_refusal
from finetuneflow.cli.session import Json, Session, print_json, session
from finetuneflow.cli.text_files import read_text
from finetuneflow.resources.preflight import Preflight
from finetuneflow.spec import draft_spec
from finetuneflow.v1 import probe_service_pb2 as pb


class Here(Protocol):
    """Answers on this machine, without a server. Raises InvalidArgument or CommandFailed."""

    def preflight(
        self, request: pb.PreflightFineTuningJobRequest, files: Mapping[str, Path]
    ) -> pb.PreflightFineTuningJobResponse: ...
    def estimate(self, request: pb.EstimateResourcesRequest) -> pb.EstimateResourcesResponse: ...


def add_commands(app: typer.Typer, here: Here | None = None) -> None:
    """Adds what is not there yet; `here` is what the server distribution brings."""
    present = {info.name or getattr(info.callback, "__name__", "") for info in app.registered_commands}
    if "validate" not in present:
        app.command()(_validate(here))


def _validate(here: Here | None) -> Callable[..., None]:
    def validate(
        ctx: typer.Context,
        data: Annotated[
            list[str] | None, typer.Argument(help="Files of rows, dataset ids or hf://owner/name.", show_default=False)
        ] = None,
        model: Annotated[str | None, typer.Option("--model", "-m", help="Base model; see `ftf models list`.")] = None,
        recipe: Annotated[str | None, typer.Option("--recipe", "-r", help="Preset; see `ftf recipes list`.")] = None,
        settings: Annotated[
            list[str] | None, typer.Option("--set", help="A field of the job, such as lora.r=32; as often as needed.")
        ] = None,
        config: Annotated[
            Path | None, typer.Option(help="A TOML file with the fields of the job.", exists=True, dir_okay=False)
        ] = None,
        mapping: Map = None,
        template: Template = None,
        format_: Format = None,
        max_length: MaxLength = None,
        truncation: TruncationSide = None,
        system_prompt: SystemPrompt = None,
        chat_template: ChatTemplate = None,
        node: Annotated[str, typer.Option(help="For this node's hardware.")] = "",
        json: Json = False,
    ) -> None:
        """Check a job before there is one: rows, settings, memory, disk, time. Exit code 2 when it would be refused."""
        values: dict[str, Any] = read_config(config) if config else {}
        rows = sources(data or [], source_settings(mapping, template, format_))
        flags = {"training_data": rows, "base_model": model, "recipe": recipe, "system_prompt": system_prompt}
        values |= {key: value for key, value in flags.items() if value}
        if chat_template is not None:
            values["chat_template"] = read_text(chat_template)
        if max_length is not None:
            apply_setting(values, f"hyperparameters.max_length={max_length}")
        if truncation is not None:
            apply_setting(values, f"hyperparameters.truncation={truncation}")
        for setting in settings or []:
            apply_setting(values, setting)
        show(ctx, _asked(session(ctx), here, values, node), json=json)

    return validate


def show(ctx: typer.Context, found: Preflight, *, json: bool) -> None:
    """Prints it, and ends the command with code 2 where the job would be refused."""
    if json:
        print_json(found.proto)
    else:
        print_preflight(session(ctx).console, found)
    if found.refused:
        raise typer.Exit(USAGE)


def _asked(at: Session, here: Here | None, values: dict[str, Any], node: str) -> Preflight:
    ask = at.client.probe.ask_estimate if here is None or at.address is not None else here.estimate
    with every_refusal(values, ask):
        draft = draft_spec(values)
    named = [*draft.spec.training_data, *draft.spec.evaluation_data]
    named += [source for phase in draft.spec.phases for source in phase.training_data]
    of_the_server = any(source.dataset.startswith("ds_") for source in named)
    if here is None or at.address is not None or node or of_the_server:
        return at.client.jobs.preflight(spec=values, node_id=node)
    for source, path in draft.files:
        source.dataset = str(path)
    request = pb.PreflightFineTuningJobRequest(spec=draft.spec)
    return Preflight.from_proto(here.preflight(request, {str(path): path for _, path in draft.files}))
