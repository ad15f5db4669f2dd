"""`ftf jobs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.following import follow_or_detach
from finetuneflow.cli.outcome import show_explanation, show_job
from finetuneflow.cli.session import Json, not_empty, print_deleted, print_json, print_newest, session
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.fields import INT32_MAX, INT64_MAX
from finetuneflow.resources.job import Job

app = typer.Typer(no_args_is_help=True, help="List, follow, control and explain jobs.")

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", callback=not_empty)]


@app.command("list")
def list_jobs(
    ctx: typer.Context,
    state: Annotated[list[str] | None, typer.Option(help="Only jobs in this state. Repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Only jobs with this label, KEY=VALUE. Repeatable; all must match.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=INT32_MAX, help="Maximum number to list, newest first.")] = 20,
    json: Json = False,
) -> None:
    """List the newest jobs."""
    here = session(ctx)

    def newest(most: int) -> Iterator[Job]:
        return here.client.jobs.list(states=state or [], labels=_labels(label or []), limit=most)

    if json:
        print_json(*(job.proto for job in newest(limit)))
    else:
        headers = ["ID", "STATE", "STAGE", "STEP", "MODEL", "CREATED", "NAME"]
        print_newest(here.console, headers, newest, _row, limit)


@app.command()
def get(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Show one job with its attempts, evaluation and export."""
    here = session(ctx)
    job = here.client.jobs.get(job_id)
    if json:
        print_json(job.proto)
    else:
        show_job(here.client, job, here.console)


@app.command()
def watch(
    ctx: typer.Context,
    job_id: JobId,
    after: Annotated[int, typer.Option(min=0, max=INT64_MAX, help="Only events after this sequence.")] = 0,
    training_log: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Write the metrics to this file as they arrive, one JSON object per line; replaces it."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Follow a job from its first event to its end. Ctrl-C leaves the job running."""
    follow_or_detach(session(ctx), job_id, json=json, after_sequence=after, training_log=training_log)


@app.command()
def cancel(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Cancel a job. Its checkpoints are kept."""
    _show_state(ctx, session(ctx).client.jobs.cancel(job_id), json)


@app.command()
def pause(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Pause a job after writing a checkpoint, and release its device."""
    _show_state(ctx, session(ctx).client.jobs.pause(job_id), json)


@app.command()
def resume(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Resume a paused job from its latest checkpoint."""
    _show_state(ctx, session(ctx).client.jobs.resume(job_id), json)


@app.command()
def explain(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Explain the state of a job: attempts, failures, warnings and automatic values."""
    here = session(ctx)
    job = here.client.jobs.get(job_id)
    kinds = ["stage_failed", "warning", "restored"]
    events = here.client.jobs.events(job_id, kinds=kinds)
    if json:
        print_json(job.proto, *(event.proto for event in events))
    else:
        show_explanation(job, list(events), here.console)


@app.command()
def delete(ctx: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Delete a job that has ended, with its history and files."""
    here = session(ctx)
    here.client.jobs.delete(job_id)
    print_deleted(here.console, job_id, as_json=json)


def _show_state(ctx: typer.Context, job: Job, json: bool) -> None:
    if json:
        print_json(job.proto)
    else:
        session(ctx).console.print(f"{job.id} {job.state}")


def _row(job: Job) -> list[str]:
    progress = job.progress
    step = f"{progress.step}/{progress.total_steps}" if progress and progress.total_steps else ""
    created = f"{job.create_time.astimezone():%Y-%m-%d %H:%M}" if job.create_time else ""
    return [job.id, job.state, job.stage, step, str(job.spec.get("base_model", "")), created, job.display_name]


def _labels(labels: list[str]) -> dict[str, str]:
    pairs = {}
    for label in labels:
        key, equals, value = label.partition("=")
        if not equals:
            raise InvalidArgument(
                "The label is invalid.", violations=[Violation(f"--label {label}", "must be KEY=VALUE")]
            )
        pairs[key] = value
    return pairs
