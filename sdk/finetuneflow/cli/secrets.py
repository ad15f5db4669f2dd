"""`ftf secrets`."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Annotated

import typer

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.console import error_console
from finetuneflow.cli.session import Json, not_empty, print_deleted, print_json, print_rows, session

app = typer.Typer(
    no_args_is_help=True,
    help="Secrets for jobs, such as a token of the model hub: `ftf train --set secrets.hub_token=NAME`.",
)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the secret.", callback=not_empty)]


@app.command("set")
def set_secret(ctx: typer.Context, name: _Name, json: Json = False) -> None:
    """Create a secret or replace its value, which is asked for, or read from stdin in a pipe."""
    here = session(ctx)
    # Never an argument: every user of the machine sees those, and the shell's history keeps them.
    value = _asked(name) if sys.stdin.isatty() else sys.stdin.read().removesuffix("\n").removesuffix("\r")
    secret = here.client.secrets.set(name, value)
    if json:
        print_json(secret.proto)
    else:
        here.console.print(f"Set {secret.name}")


@app.command("list")
def list_secrets(ctx: typer.Context, json: Json = False) -> None:
    """List the secrets, without their values."""
    here = session(ctx)
    secrets = here.client.secrets.list()
    if json:
        print_json(*(secret.proto for secret in secrets))
    else:
        rows = ([each.name, *map(_time, (each.update_time, each.last_use_time))] for each in secrets)
        print_rows(here.console, ["NAME", "SET", "LAST USED"], rows)


@app.command()
def delete(ctx: typer.Context, name: _Name, json: Json = False) -> None:
    """Delete a secret permanently."""
    here = session(ctx)
    integrations = here.client.secrets.delete(name)
    print_deleted(here.console, name, as_json=json, integration_ids=integrations)
    if integrations:
        message = f"These integrations need it and fail at their next delivery: {', '.join(integrations)}."
        error_console().print(f"{message} To set it again: {ftf(f'secrets set {name}')}")


def _asked(name: str) -> str:
    value: str = typer.prompt(f"Value of {name}", hide_input=True, err=True)
    return value


def _time(time: datetime | None) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M}" if time else ""
