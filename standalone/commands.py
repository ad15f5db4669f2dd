"""The commands that this distribution adds to `ftf`: `up`, `demo`, `models path`, and what works without a server:
looks at files of rows, `recommend` and `estimate`."""

from __future__ import annotations

import os
import signal
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli import estimates, validating
from finetuneflow.cli.console import error_console, make_console
from finetuneflow.cli.exits import DETACHED, JOB_FAILED, CommandFailed
from finetuneflow.cli.looking import add_commands
from finetuneflow.cli.session import Json
from finetuneflow.v1 import dataset_service_pb2 as pb
from standalone.estimates import ProbeHere

# What these commands need is imported when they run: `ftf --help` shall not wait for it.

_Home = Annotated[
    Path | None,
    typer.Option(envvar="FTF_HOME", help="Folder of the data.", show_default="~/.finetuneflow", file_okay=False),
]


def register(app: typer.Typer) -> None:
    """Entry point of the group `finetuneflow.commands`."""
    app.command()(up)
    app.command()(demo)
    estimates.add_commands(app, ProbeHere())
    validating.add_commands(app, ProbeHere())
    for group in app.registered_groups:
        if group.name == "models" and group.typer_instance is not None:
            group.typer_instance.command("path")(model_path)
        if group.name == "datasets" and group.typer_instance is not None:
            add_commands(group.typer_instance, _LookHere())


class _LookHere:
    """Looks at files on this machine; what that needs is imported when it does."""

    def validate(self, request: pb.ValidateDatasetRequest, file: Path) -> pb.ValidateDatasetResponse:
        from standalone.looking import LookHere

        return LookHere().validate(request, file)

    def preview(self, request: pb.PreviewDatasetRequest, file: Path) -> pb.PreviewDatasetResponse:
        from standalone.looking import LookHere

        return LookHere().preview(request, file)


def up(
    home: _Home = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 7460,
    json: Json = False,
) -> None:
    """Run a whole server for this machine, until Ctrl-C. It listens on 127.0.0.1 only."""
    from standalone.home import HomeTaken, default_home
    from standalone.nats import NatsServerMissing
    from standalone.processes import StartFailed
    from standalone.up import PortTaken, main

    for variable in ("FTF_GATEWAY_LISTEN", "FTF_LISTEN"):
        if variable in os.environ:
            raise CommandFailed(
                "`ftf up` listens on 127.0.0.1 only, as there is no TLS and no authentication yet.",
                advice=f"Unset {variable}, and choose a port with --port.",
            )
    try:
        main((home or default_home()).expanduser().absolute(), port, make_console(), as_json=json)
    except (HomeTaken, NatsServerMissing, PortTaken) as error:
        raise CommandFailed(str(error)) from error
    except StartFailed as error:
        raise CommandFailed(str(error), code=JOB_FAILED) from error


def demo(
    output: Annotated[Path, typer.Option(help="Folder that gets the package.", file_okay=False)] = Path(
        "finetuneflow-demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the server up afterwards.")] = False,
) -> None:
    """Fine-tune a small model on example data, from nothing: a server of its own, a job, a package."""
    from standalone.demo import demo
    from standalone.processes import StartFailed

    # Ended from outside, it stops what it has started just as with Ctrl-C.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        succeeded = demo(make_console(), output, keep=keep)
    except StartFailed as error:
        raise CommandFailed(str(error), code=JOB_FAILED) from error
    except KeyboardInterrupt:
        error_console().print("\nStopped, and everything that was started with it.")
        raise typer.Exit(DETACHED) from None
    if not succeeded:
        raise typer.Exit(JOB_FAILED)


def model_path(
    model: Annotated[str, typer.Argument(help="An alias or a Hugging Face id; see `ftf models list`.")],
    home: _Home = None,
    json: Json = False,
) -> None:
    """Print where a base model's files are on this machine; they are downloaded or made where they are not yet."""
    from engine.catalogue import Catalogue
    from engine.errors import JobError, SystemFailure
    from standalone.settings import StandaloneSettings

    settings = StandaloneSettings() if home is None else StandaloneSettings(home=home)
    try:
        local = Catalogue(settings.home, settings.models).fetch(model)
    except (JobError, SystemFailure) as error:
        raise CommandFailed(error.message, advice="" if error.advice in error.message else error.advice) from error
    if json:
        typer.echo(dumps({"id": local.id, "revision": local.revision, "path": str(local.path)}))
    else:
        typer.echo(local.path)
