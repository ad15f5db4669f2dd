"""`ftf download`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.session import Json, not_empty, session, size


def download(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", callback=not_empty)],
    out: Annotated[Path | None, typer.Option(help="Folder to download into.", show_default="./JOB")] = None,
    json: Json = False,
) -> None:
    """Download and verify the package of a finished job. An interrupted download resumes."""
    here = session(ctx)
    for path in here.client.jobs.download(job_id, out or Path(job_id)):
        if json:
            typer.echo(json_module.dumps({"path": str(path), "size_bytes": path.stat().st_size}))
        else:
            here.console.print(f"{path}  {size(path.stat().st_size)}")
