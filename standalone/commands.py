"""Adds the commands `up`, `demo`, `score` and `models path` to `ftf`, and the probe that answers without a server."""

from __future__ import annotations

import os
import signal
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.console import error_console, make_console
from finetuneflow.cli.exits import DETACHED, JOB_FAILED, CommandFailed
from finetuneflow.cli.local_probe import LocalProbe
from finetuneflow.cli.session import Json
from standalone.local_probe import ChildProbe

# The modules that a command needs are imported when it runs: `ftf --help` must not wait for them.

_Home = Annotated[
    Path | None,
    typer.Option(envvar="FTF_HOME", help="Data folder of the server.", show_default="~/.finetuneflow", file_okay=False),
]


def register(app: typer.Typer) -> LocalProbe:
    """Entry point of the group `finetuneflow.commands`."""
    app.command()(up)
    app.command()(demo)
    app.command()(score)
    for group in app.registered_groups:
        if group.name == "models" and group.typer_instance is not None:
            group.typer_instance.command("path")(model_path)
    return ChildProbe()


def up(
    home: _Home = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the gateway.")] = 7460,
    tls_cert: Annotated[
        Path | None, typer.Option(help="PEM file with your own certificate.", exists=True, dir_okay=False)
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its key.", exists=True, dir_okay=False)] = None,
    json: Json = False,
) -> None:
    """Run a complete server until Ctrl-C. Callers need TLS and a key, which clients of your user find by themselves."""
    from standalone.home import HomeTaken, default_home
    from standalone.listener import InvalidHost, listener_on
    from standalone.nats import NatsServerMissing
    from standalone.processes import StartFailed
    from standalone.up import PortTaken, main

    for variable in ("FTF_GATEWAY_LISTEN", "FTF_LISTEN"):
        if variable in os.environ:
            raise CommandFailed(
                f"{variable} is set, but `ftf up` chooses where its processes listen.",
                advice=f"Unset {variable}; set the address with --host and --port.",
            )
    if (tls_cert is None) != (tls_key is None):
        raise CommandFailed("--tls-cert and --tls-key belong together.", advice="Give both, or none.")
    try:
        listener = listener_on(host, port, tls_cert, tls_key)
        main((home or default_home()).expanduser().absolute(), listener, make_console(), as_json=json)
    except (HomeTaken, InvalidHost, NatsServerMissing, PortTaken) as error:
        raise CommandFailed(str(error)) from error
    except StartFailed as error:
        raise CommandFailed(str(error), code=JOB_FAILED) from error


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the exported package.", file_okay=False)] = Path(
        "finetuneflow-demo"
    ),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the server running afterwards.")] = False,
) -> None:
    """Fine-tune a small model on example data: start a server, run a job, export the package."""
    from standalone.demo import demo
    from standalone.processes import StartFailed

    # A signal from outside stops the server and the job, as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        succeeded = demo(make_console(), output, keep=keep)
    except StartFailed as error:
        raise CommandFailed(str(error), code=JOB_FAILED) from error
    except KeyboardInterrupt:
        error_console().print("\nThe demo and all its processes are stopped.")
        raise typer.Exit(DETACHED) from None
    if not succeeded:
        raise typer.Exit(JOB_FAILED)


def score(
    outputs: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines with user_prompt, assistant_response, ground_truth.", exists=True, dir_okay=False
        ),
    ],
    against: Annotated[
        Path | None, typer.Option(help="Other answers to the same rows.", exists=True, dir_okay=False)
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric, such as rouge_l. Repeatable.", show_default="chosen")
    ] = None,
    json: Json = False,
) -> None:
    """Score a file of answers, such as `ftf generate --out` writes, without a server."""
    from engine.errors import JobError
    from finetuneflow.cli.session import print_rows
    from standalone.score import as_row, json_lines, scores

    try:
        found = [as_row(each, is_alone=against is None) for each in scores(outputs, against, metric or ())]
    except JobError as error:
        raise CommandFailed(error.message, advice=error.advice) from error
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--metric") from error
    if json:
        typer.echo(json_lines(found))
        return
    names = ["metric", "value", "value_low", "value_high", "num_rows"]
    names += [] if against is None else ["against", "gain", "gain_low", "gain_high", "conclusion"]
    headers = [name.replace("_", " ").upper() for name in names]
    print_rows(make_console(), headers, ([_cell(row[name]) for name in names] for row in found))


def _cell(value: float | str | None) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value).lower().replace("_", " ")


def model_path(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="Alias or Hugging Face id, see `ftf models list`; or ft:JOB.")],
    home: _Home = None,
    json: Json = False,
) -> None:
    """Print the folder of a base model, or of a copy of a job's merged model; download it first if it is missing."""
    from finetuneflow.cli.merged_copy import TUNED, print_merged_copy

    if model.startswith(TUNED):
        print_merged_copy(ctx, model, home, as_json=json)
        return
    from engine.catalogue import Catalogue
    from engine.errors import JobError, SystemFailure
    from standalone.settings import StandaloneSettings

    settings = StandaloneSettings() if home is None else StandaloneSettings(home=home)
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        limit = settings.hub_cache_bytes or None
        local = Catalogue(settings.home, settings.models, max_cache_bytes=limit, shared=True).fetch(model)
    except (JobError, SystemFailure) as error:
        raise CommandFailed(error.message, advice="" if error.advice in error.message else error.advice) from error
    if json:
        typer.echo(dumps({"id": local.id, "revision": local.revision, "path": str(local.path)}))
    else:
        typer.echo(local.path)
