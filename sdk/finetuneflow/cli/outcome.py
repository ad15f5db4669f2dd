"""How a job stands or ended, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from finetuneflow.cli.advice import as_typed, ftf
from finetuneflow.cli.config import toml_text
from finetuneflow.cli.lines import restored_line
from finetuneflow.cli.session import count, duration, print_rows, size
from finetuneflow.client import Client
from finetuneflow.resources.event import Event
from finetuneflow.resources.job import AttemptSummary, Job, JobState


def show_outcome(client: Client, job: Job, console: Console, *, told: bool = False) -> None:
    """What came out, and the commands that follow from it. With `told` the reader has seen the failure itself."""
    if job.state == JobState.FAILED:
        show_failure(job, console, told=told)
        console.print(f"Look into it: {ftf(f'jobs explain {job.id}')}")
        return
    if job.state != JobState.SUCCEEDED:
        console.print(f"Job {job.id} is {job.state}.", style="yellow")
        return
    early = " (stopped early)" if job.reason == "EARLY_STOPPED" else ""
    console.print(f"Job {job.id} succeeded{early}.", style="green")
    _show_results(client, job, console)
    console.print(f"Fetch the package: {ftf(f'download {job.id}')}")


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
    _show_results(client, job, console)
    if job.state == JobState.FAILED:
        show_failure(job, console)
    _show_attempts(job.attempts, console)


def show_failure(job: Job, console: Console, *, told: bool = False) -> None:
    why = "." if told else f": {job.reason}: {as_typed(job.message)}"
    console.print(f"Job {job.id} failed in {job.stage.lower()}{why}", style="red")
    console.print(f"Fault: {job.fault or 'not known'}")
    if job.advice:
        console.print(f"What helps: {as_typed(job.advice)}")


def show_explanation(job: Job, events: Sequence[Event], console: Console) -> None:
    """Why the job is as it is: its failure, its attempts and what each said last, warnings, and automatic choices."""
    if job.state == JobState.FAILED:
        show_failure(job, console)
    else:
        console.print(f"Job {job.id} is {job.state}" + (f": {job.reason}" if job.reason else "") + ".")
        if job.message:
            console.print(as_typed(job.message))
    _show_attempts(job.attempts, console)
    failure: Event | None = None
    for event in events:
        if event.kind == "stage_failed":
            failure = event
            _show_attempt(event, job, console)
        elif event.kind == "warning":
            advice = f" ({as_typed(event.warning.advice)})" if event.warning.advice else ""
            console.print(f"\nWarning in {event.stage.lower()}: {event.warning.message}{advice}", style="yellow")
        elif event.kind == "restored":
            line = restored_line(event, failure)
            console.print(f"\n{line[0].upper()}{line[1:]}.")
    if job.resolutions:
        console.print("\nAutomatic choices:")
        for resolution in job.resolutions:
            console.print(f"  {resolution.field} = {resolution.value}: {resolution.reason}")
    if job.resolved_spec:
        console.print("\nWhat it runs with:\n" + toml_text(job.resolved_spec))


def _show_attempts(attempts: Sequence[AttemptSummary], console: Console) -> None:
    if all(attempt.attempt == 1 and attempt.outcome in ("", "COMPLETED") for attempt in attempts):
        return
    console.print("\nAttempts:")
    headers = ["STAGE", "ATTEMPT", "NODE", "OUTCOME", "REASON", "COUNTED", "TOOK"]
    print_rows(console, headers, map(_attempt_row, attempts))


def _attempt_row(attempt: AttemptSummary) -> list[str]:
    took = "" if attempt.seconds is None else duration(attempt.seconds)
    outcome = attempt.outcome or attempt.state
    counted = "yes" if attempt.counted else ""
    return [attempt.stage.lower(), str(attempt.attempt), attempt.node_id, outcome, attempt.reason, counted, took]


def _show_attempt(event: Event, job: Job, console: Console) -> None:
    """Only what the job's own failure and the table of its attempts have not said."""
    failure = event.stage_failed
    said = [] if failure.message in job.message else [f"  {as_typed(failure.message)}"]
    for violation in failure.violations:
        place = violation.field.rpartition(" row ")
        # The row stands at the beginning of the description too.
        description = violation.description.removeprefix(f"row {place[2]}: ")
        if f"{description.partition(' [')[0]}" not in job.message:
            said.append(f"  {violation.field}: {description}")
    if failure.advice and failure.advice not in job.advice:
        said.append(f"  What helps: {as_typed(failure.advice)}")
    if failure.last_lines:
        said += ["  Its last lines:", *(f"  | {line}" for line in failure.last_lines)]
    if said:
        console.print(f"\nAttempt {event.attempt} of {event.stage.lower()}, {failure.reason}:")
        for line in said:
            console.print(line)


def _show_results(client: Client, job: Job, console: Console) -> None:
    if job.training is not None:
        training = job.training
        best = "" if training.best_eval_loss is None else f", best eval loss {training.best_eval_loss:.4f}"
        took = duration(training.train_runtime_seconds)
        steps = count(training.total_steps, "step")
        console.print(f"Training    {steps} in {took}, mean training loss {training.train_loss:.4f}{best}")
    if job.evaluation_id:
        evaluation = client.evaluations.get(job.evaluation_id)
        result = evaluation.result
        if result is not None and result.tuned_loss is not None:
            base = "" if result.base_loss is None else f"base {result.base_loss:.4f}, "
            change = "" if evaluation.delta is None else f" ({evaluation.delta:+.4f})"
            rows = count(result.num_examples, "row")
            console.print(f"Held out    {base}tuned {result.tuned_loss:.4f}{change} nats per token, {rows}")
    if job.export_id:
        export = client.exports.get(job.export_id)
        if export.result is not None:
            console.print(f"Package     {export.result.package_path}, {size(export.result.package_size_bytes)}")
    if job.tuned_model:
        console.print(f"Tuned model {job.tuned_model}")
