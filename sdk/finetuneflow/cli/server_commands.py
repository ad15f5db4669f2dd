"""Adds what the server distribution provides through the entry points of group `finetuneflow.commands`.

Each entry point is a callable `register(app: typer.Typer) -> LocalProbe | None`. It adds its commands to the app, or to
a group in `app.registered_groups`, and returns the LocalProbe if it has one. A command that no entry point adds says
what to install.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.exits import CommandFailed
from finetuneflow.cli.local_probe import LocalProbe
from finetuneflow.cli.merged_copy import TUNED, print_merged_copy
from finetuneflow.cli.session import Json

GROUP = "finetuneflow.commands"
_INSTALL = 'pip install "finetuneflow-server[standalone]"'

_UP = "Run a complete server on this machine."
_DEMO = "Fine-tune a small model on example data with a temporary server."
_SCORE = "Score a file of answers without a server."
_PATH = "Print the folder of a copy of a job's merged model; download it first if it is missing."


def add_server_commands(app: typer.Typer, models: typer.Typer) -> LocalProbe | None:
    """Adds the commands, and returns the LocalProbe of the first entry point that has one."""
    problems: list[str] = []
    probe: LocalProbe | None = None
    for entry_point in entry_points(group=GROUP):
        try:
            register = entry_point.load()
        except ImportError as error:
            problems.append(f"{entry_point.value} cannot be imported: {error}")
        else:
            provided: LocalProbe | None = register(app)
            probe = probe or provided
    for group, prefix, name, summary in (
        (app, "", "up", _UP),
        (app, "", "demo", _DEMO),
        (app, "", "score", _SCORE),
    ):
        if name not in _names(group):
            group.command(
                name,
                help=f"{summary} Part of the server's package, which is not installed.",
                context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
            )(_missing(prefix + name, problems))
    if "path" not in _names(models):
        models.command("path", help=_PATH)(_tuned_path(problems))
    return probe


def _tuned_path(problems: list[str]) -> Callable[..., None]:
    def path(
        ctx: typer.Context,
        model: Annotated[str, typer.Argument(help="ft:JOB or ft:JOB@STEP; base models need the server's package.")],
        home: Annotated[
            Path | None, typer.Option(envvar="FTF_HOME", help="Folder of the copies.", show_default="~/.finetuneflow")
        ] = None,
        json: Json = False,
    ) -> None:
        if not model.startswith(TUNED):
            _missing("models path", problems)()
        print_merged_copy(ctx, model, home, as_json=json)

    return path


def _names(app: typer.Typer) -> set[str]:
    return {str(info.name or getattr(info.callback, "__name__", "")) for info in app.registered_commands}


def _missing(name: str, problems: list[str]) -> Callable[[], None]:
    def missing() -> None:
        raise CommandFailed(
            f"`ftf {name}` is part of the server's package, which is not installed.",
            advice="\n".join([f"Install it: {_INSTALL}", *problems]),
        )

    return missing
