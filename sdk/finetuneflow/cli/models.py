"""`ftf models`. The server distribution adds the command `path`."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuneflow.cli.session import Json, print_json, print_rows, session
from finetuneflow.resources.model import Model


def make_app() -> typer.Typer:
    """Returns a new group of commands; the server distribution adds commands to it."""
    app = typer.Typer(no_args_is_help=True, help="Base models and tuned models.")
    app.command("list")(list_models)
    return app


def list_models(
    ctx: typer.Context,
    kind: Annotated[str | None, typer.Option(help="Only this kind: base or tuned.")] = None,
    json: Json = False,
) -> None:
    """List the base models of the catalogue, then the tuned models."""
    here = session(ctx)
    models = here.client.models.list(kind=kind)
    if json:
        print_json(*(model.proto for model in models))
    else:
        print_rows(
            here.console, ["ID", "KIND", "PARAMETERS", "CONTEXT", "LICENCE", "GATE", "DESCRIPTION"], map(_row, models)
        )


def _gate(model: Model) -> str:
    said = [(model.gate_decision or "").lower(), "regression shown" if model.shown_regression else ""]
    return ", ".join(filter(None, said))


def _row(model: Model) -> list[str]:
    parameters = f"{model.num_parameters / 1e6:,.0f} M" if model.num_parameters else ""
    context = str(model.context_length) if model.context_length else ""
    return [
        model.id,
        model.kind,
        parameters,
        context,
        model.license,
        _gate(model),
        model.description,
    ]
