"""`ftf download`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from finetuneflow.cli.console import visible_cell
from finetuneflow.cli.session import Json, Session, not_empty, session, size


def make_folder(out: Path) -> None:
    """Creates the folder of a later download. Raises BadParameter if it cannot be created."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"{out} cannot be created: {error.strerror}. Name a folder in which you may write."
        raise typer.BadParameter(problem, param_hint="--out") from error


def download(
    ctx: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="JOB_OR_EXPORT", help="Id of the job or export, or ft:JOB.", callback=not_empty),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to download into.", show_default="./ID", file_okay=False)
    ] = None,
    json: Json = False,
) -> None:
    """Download and verify the package of a job or export. An interrupted download resumes."""
    here = session(ctx)
    client = here.client
    work_id = source.removeprefix("ft:")
    if work_id.startswith("ev_"):
        raise typer.BadParameter("an evaluation has no package; give a job or an export.", param_hint="JOB_OR_EXPORT")
    download_from = client.exports.download if work_id.startswith("ex_") else client.jobs.download
    paths = download_from(work_id, out or Path(work_id), progress=progress_of(here, as_json=json))
    print_downloaded(here.console, paths, as_json=json)


class Downloading:
    """Prints the progress of downloads on a terminal, one line per file."""

    def __call__(self, name: str, done: int, total: int) -> None:
        typer.echo(f"\rDownloading {visible_cell(name)}: {size(done)} of {size(total)}", nl=done >= total, err=True)


def progress_of(here: Session, *, as_json: bool) -> Downloading | None:
    """Returns the progress to show for downloads; None in a pipe."""
    return None if as_json or not here.console.is_terminal else Downloading()


def print_downloaded(console: Console, paths: Iterable[Path], *, as_json: bool) -> None:
    """Prints the files of a download with their sizes."""
    for path in paths:
        if as_json:
            typer.echo(json_module.dumps({"path": str(path), "size_bytes": path.stat().st_size}))
        else:
            console.print(f"{path}  {size(path.stat().st_size)}")
