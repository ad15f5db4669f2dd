"""The command tree of `ftf`."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuneflow import __version__
from finetuneflow.cli import (
    datasets,
    doctor,
    download,
    estimates,
    jobs,
    looking,
    metrics,
    models,
    probe,
    recipes,
    train,
    validating,
)
from finetuneflow.cli.advice import ADDRESS
from finetuneflow.cli.exits import EXIT_CODES, ReportingGroup
from finetuneflow.cli.server_commands import add_server_commands
from finetuneflow.cli.session import Session
from finetuneflow.connection import DEFAULT_ADDRESS


def build_app() -> typer.Typer:
    """Builds the command tree: the client's own commands, then those of the server distribution if it is installed."""
    app = typer.Typer(
        cls=ReportingGroup,
        help="Fine-tune language models and follow the training live.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    app.command()(train.train)
    app.add_typer(jobs.app, name="jobs")
    app.command()(metrics.metrics)
    app.command()(download.download)
    datasets_app = datasets.make_app()
    app.add_typer(datasets_app, name="datasets")
    models_app = models.make_app()
    app.add_typer(models_app, name="models")
    app.add_typer(recipes.app, name="recipes")
    app.command()(probe.probe)
    app.command()(doctor.doctor)
    add_server_commands(app, models_app)
    estimates.add_commands(app)
    looking.add_commands(datasets_app)
    validating.add_commands(app)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ftf {__version__}")
        raise typer.Exit


def _root(
    ctx: typer.Context,
    address: Annotated[
        str | None,
        typer.Option(
            envvar="FTF_ADDRESS",
            help="host:port of the server. Separate several gateways by commas.",
            show_default=DEFAULT_ADDRESS,
        ),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    ADDRESS.set(address)
    ctx.obj = Session(address=address)
