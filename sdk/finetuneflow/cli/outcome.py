"""How a job stands or ended, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from finetuneflow.cli.config import toml_text
from finetuneflow.cli.session import duration, size
from finetuneflow.client import Client
from finetuneflow.resources.event import Event
from finetuneflow.resources.job import Job, JobState


def show_outcome(client: Client, job: Job, console: Console) -> None:
    """What came out, and the commands that follow from it."""
    if job.state == JobState.FAILED:
        show_failure(job, console)
        console.print(f"Look into it: ftf jobs explain {job.id}")
        return
    if job.state != JobState.SUCCEEDED:
        console.print(f"Job {job.id} is {job.state}.", style="yellow")
        return
    early = " (stopped early)" if job.reason == "EARLY_STOPPED" else ""
    console.print(f"Job {job.id} succeeded{early}.", style="green")
    _show_results(client, job, console)
    console.print(f"Fetch the package: ftf download {job.id}")


def show_job(client: Client, job: Job, console: Console) -> None:
    """Everything about one job that fits on a screen."""
    name = f"  {job.display_name}" if job.display_name else ""
    console.print(f"{job.id}{name}")
    console.print(f"State       {job.state}, {job.stage.lower()}" + (f": {job.reason}" if job.reason else ""))
    console.print(f"Base model  {job.spec.get('base_model', '')}")
    console.print(f"Recipe      {job.spec.get('recipe') or 'default'}")
    if job.create_time is not None:
        ended = f", ended {job.end_time.astimezone():%H:%M:%S}" if job.end_time else ""
        console.print(f"Created     {job.create_time.astimezone():%Y-%m-%d %H:%M:%S}{ended}")
    if job.progress is not None and job.progress.total_steps:
        progress = job.progress
        loss = "" if progress.loss is None else f", loss {progress.loss:.4f}"
        evaluated = "" if progress.best_eval_loss is None else f", best eval loss {progress.best_eval_loss:.4f}"
        console.print(f"Step        {progress.step} of {progress.total_steps}{loss}{evaluated}")
    if job.state == JobState.FAILED:
        show_failure(job, console)
    _show_results(client, job, console)


def show_failure(job: Job, console: Console) -> None:
    console.print(f"Job {job.id} failed in {job.stage.lower()}: {job.reason}: {job.message}", style="red")
    console.print(f"Fault: {job.fault or 'not known'}")
    if job.advice:
        console.print(f"What helps: {job.advice}")


def show_explanation(job: Job, events: Sequence[Event], console: Console) -> None:
    """Why the job is as it is: failures with their last lines, warnings, and each automatic choice."""
    console.print(f"Job {job.id} is {job.state}" + (f": {job.reason}" if job.reason else "") + ".")
    if job.state == JobState.FAILED:
        show_failure(job, console)
    elif job.message:
        console.print(job.message)
    for event in events:
        if event.kind == "stage_failed":
            _show_attempt(event, console)
        elif event.kind == "warning":
            advice = f" ({event.warning.advice})" if event.warning.advice else ""
            console.print(f"\nWarning in {event.stage.lower()}: {event.warning.message}{advice}", style="yellow")
        elif event.kind == "restored":
            console.print(f"\nAttempt {event.attempt} went on from step {event.restored.checkpoint_step}.")
    if job.resolutions:
        console.print("\nAutomatic choices:")
        for resolution in job.resolutions:
            console.print(f"  {resolution.field} = {resolution.value}: {resolution.reason}")
    if job.resolved_spec:
        console.print("\nWhat it runs with:\n" + toml_text(job.resolved_spec))


def _show_attempt(event: Event, console: Console) -> None:
    failure = event.stage_failed
    console.print(f"\nAttempt {event.attempt} of {event.stage.lower()} failed: {failure.reason}: {failure.message}")
    for violation in failure.violations:
        console.print(f"  {violation.field}: {violation.description}")
    if failure.advice:
        console.print(f"  What helps: {failure.advice}")
    if failure.last_lines:
        console.print("  Its last lines:")
        for line in failure.last_lines:
            console.print(f"  | {line}")


def _show_results(client: Client, job: Job, console: Console) -> None:
    if job.training is not None:
        training = job.training
        best = "" if training.best_eval_loss is None else f", best eval loss {training.best_eval_loss:.4f}"
        took = duration(training.train_runtime_seconds)
        console.print(f"Training    {training.total_steps} steps in {took}, loss {training.train_loss:.4f}{best}")
    if job.evaluation_id:
        evaluation = client.evaluations.get(job.evaluation_id)
        result = evaluation.result
        if result is not None and result.tuned_loss is not None:
            base = "" if result.base_loss is None else f"base {result.base_loss:.4f}, "
            change = "" if evaluation.delta is None else f" ({evaluation.delta:+.4f})"
            rows = f", {result.num_examples} rows"
            console.print(f"Held out    {base}tuned {result.tuned_loss:.4f}{change} nats per token{rows}")
    if job.export_id:
        export = client.exports.get(job.export_id)
        if export.result is not None:
            console.print(f"Package     {export.result.package_path}, {size(export.result.package_size_bytes)}")
    if job.tuned_model:
        console.print(f"Tuned model {job.tuned_model}")
