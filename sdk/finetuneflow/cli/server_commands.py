"""Commands that the server distribution brings, through the entry points of group `finetuneflow.commands`.

Each entry point is a callable `register(app: typer.Typer) -> None`; the groups (`models`, ...) are in
`app.registered_groups`. A command that nobody brings is there all the same, and says what to install.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points

import typer

from finetuneflow.cli.exits import CommandFailed

GROUP = "finetuneflow.commands"
_INSTALL = 'pip install "finetuneflow-server[standalone]"'

_UP = "Run a whole server on this machine."
_DEMO = "Fine-tune a small model on example data, from nothing."
_PATH = "Where a model's files are on this machine."


def add_server_commands(app: typer.Typer, models: typer.Typer) -> None:
    problems = []
    for entry_point in entry_points(group=GROUP):
        try:
            register = entry_point.load()
        except ImportError as error:
            problems.append(f"{entry_point.value} can't be imported: {error}")
        else:
            register(app)
    for group, prefix, name, summary in (
        (app, "", "up", _UP),
        (app, "", "demo", _DEMO),
        (models, "models ", "path", _PATH),
    ):
        if name not in _names(group):
            group.command(
                name,
                help=f"{summary} Part of the server, which is not installed here.",
                context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
            )(_missing(prefix + name, problems))


def _names(app: typer.Typer) -> set[str]:
    return {str(info.name or getattr(info.callback, "__name__", "")) for info in app.registered_commands}


def _missing(name: str, problems: list[str]) -> Callable[[], None]:
    def missing() -> None:
        raise CommandFailed(
            f"`ftf {name}` is part of the server, which is not installed here.",
            advice="\n".join([f"Install it: {_INSTALL}", *problems]),
        )

    return missing
