"""`ftf metrics`."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuneflow.cli.plot import plot
from finetuneflow.cli.session import Json, not_empty, print_json, print_rows, session
from finetuneflow.fields import INT32_MAX


def metrics(
    ctx: typer.Context,
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", callback=not_empty)],
    name: Annotated[list[str] | None, typer.Option(help="Only this metric. Repeatable.")] = None,
    points: Annotated[int, typer.Option(min=2, max=INT32_MAX, help="Maximum number of points per metric.")] = 100,
    json: Json = False,
) -> None:
    """Show the metrics of a job: as plots on a terminal, as lines in a pipe."""
    here = session(ctx)
    curves = here.client.jobs.metrics(job_id, names=name or [], max_points=points)
    if json:
        print_json(*(curve.proto for curve in curves.values()))
    elif here.console.is_terminal:
        for curve in curves.values():
            here.console.print(plot({curve.name: [*zip(curve.steps, curve.values, strict=True)]}))
    else:
        rows = ([c.name, str(p.step), f"{p.value:.6g}"] for c in curves.values() for p in c.points)
        print_rows(here.console, ["NAME", "STEP", "VALUE"], rows)
