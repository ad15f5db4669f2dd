"""The command tree of `ftf`."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuneflow import __version__
from finetuneflow.cli import (
    audit,
    chat,
    datasets,
    doctor,
    download,
    estimates,
    generate,
    import_config,
    integrations,
    jobs,
    keys,
    login,
    metrics,
    model_work,
    models,
    probe,
    recipes,
    secrets,
    tenants,
    train,
    validation,
    verify,
)
from finetuneflow.cli.advice import ADDRESS
from finetuneflow.cli.exits import EXIT_CODES, ReportingGroup
from finetuneflow.cli.server_commands import add_server_commands
from finetuneflow.cli.session import Session
from finetuneflow.connection import DEFAULT_ADDRESS


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ftf {__version__}")
        raise typer.Exit


_Address = Annotated[
    str | None,
    typer.Option(
        envvar="FTF_ADDRESS",
        help="Address of the server, host:port; several gateways are separated by commas.",
        show_default=DEFAULT_ADDRESS,
    ),
]
_Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
]


def build_app() -> typer.Typer:
    """Builds the command tree, with the commands of the server distribution if it is installed."""
    app = typer.Typer(
        cls=ReportingGroup,
        help="Fine-tune language models and follow the jobs.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.command()(train.train)
    app.add_typer(jobs.app, name="jobs")
    app.command()(metrics.metrics)
    app.command()(model_work.evaluate)
    app.command()(model_work.export)
    app.add_typer(model_work.evaluations_app(), name="evaluations")
    app.add_typer(model_work.exports_app(), name="exports")
    app.command()(generate.generate)
    app.command()(chat.chat)
    app.command()(download.download)
    app.command()(verify.verify)
    app.add_typer(datasets.make_app(), name="datasets")
    models_app = models.make_app()
    app.add_typer(models_app, name="models")
    app.add_typer(recipes.app, name="recipes")
    app.add_typer(secrets.app, name="secrets")
    app.add_typer(integrations.app, name="integrations")
    app.command()(probe.probe)
    app.command()(doctor.doctor)
    app.command()(login.login)
    app.command()(login.logout)
    app.command()(login.whoami)
    app.add_typer(keys.app, name="keys")
    app.add_typer(tenants.app, name="tenants")
    app.command()(audit.audit)
    app.command()(estimates.recommend)
    app.command()(estimates.estimate)
    app.command()(validation.validate)
    app.command()(import_config.import_config)
    installed_probe = add_server_commands(app, models_app)

    @app.callback()
    def root(ctx: typer.Context, address: _Address = None, _version: _Version = False) -> None:
        ADDRESS.set(address)
        ctx.obj = Session(address, installed_probe)

    return app
