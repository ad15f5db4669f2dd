"""Printed summaries of a job: its state, outcome and explanation."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console

from finetuneflow.cli import integrations
from finetuneflow.cli.advice import as_typed, ftf
from finetuneflow.cli.config import toml_text
from finetuneflow.cli.evaluation_rows import show_metrics
from finetuneflow.cli.lines import restored_line
from finetuneflow.cli.session import count, duration, print_rows, size, speed
from finetuneflow.client import Client
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.resources.event import Event
from finetuneflow.resources.export import Export
from finetuneflow.resources.job import AttemptSummary, Job, JobState
from finetuneflow.resources.stage_result import ExportFormat, ExportResult, GateDecision, TrainingResult


def show_outcome(client: Client, job: Job, console: Console, *, told: bool = False) -> None:
    """Prints the outcome of a job and the next commands. With `told`, the failure itself has been printed before."""
    if job.state == JobState.FAILED:
        show_failure(job, console, told=told)
        console.print(f"Details: {ftf(f'jobs explain {job.id}')}")
        return
    if job.state != JobState.SUCCEEDED:
        console.print(f"Job {job.id} is {job.state}.", style="yellow")
        return
    early = " (stopped early)" if job.reason == "EARLY_STOPPED" else ""
    console.print(f"Job {job.id} succeeded{early}.", style="green")
    _show_results(client, job, console)
    console.print(f"Download the package: {ftf(f'download {job.id}')}")


def show_job(client: Client, job: Job, console: Console) -> None:
    """Prints the state, progress, results and attempts of a job."""
    name = f"  {job.display_name}" if job.display_name else ""
    console.print(f"{job.id}{name}")
    console.print(f"State       {job.state}, {job.stage.lower()}" + (f": {job.reason}" if job.reason else ""))
    if job.waiting:
        console.print(f"Waiting     {job.waiting}")
    base_model = job.resolved_spec.get("base_model") or job.spec.get("base_model", "")
    console.print(f"Base model  {base_model}")
    if job.lineage:
        console.print(f"Starts from {lineage(job)}")
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
    show_attempts(job.attempts, console)
    if job.integrations:
        console.print("\nIntegrations:")
        print_rows(console, integrations.HEADERS, map(integrations.row, job.integrations))


def lineage(job: Job) -> str:
    """Describes the adapters that the job's training builds upon, newest first."""
    return ", which started from ".join(f"{each.start_from} ({each.start_mode.lower()})" for each in job.lineage)


def show_failure(job: Job, console: Console, *, told: bool = False) -> None:
    """Prints the failure of a job. With `told`, its reason and message have been printed before."""
    why = "." if told else f": {job.reason}: {as_typed(job.message)}"
    console.print(f"Job {job.id} failed in {job.stage.lower()}{why}", style="red")
    console.print(f"Fault: {job.fault or 'unknown'}")
    if job.advice:
        console.print(f"Advice: {as_typed(job.advice)}")


def show_explanation(job: Job, events: Sequence[Event], console: Console) -> None:
    """Prints the failure of a job, its attempts with their last output, warnings, and automatic values."""
    if job.state == JobState.FAILED:
        show_failure(job, console)
    else:
        console.print(f"Job {job.id} is {job.state}" + (f": {job.reason}" if job.reason else "") + ".")
        if job.message:
            console.print(as_typed(job.message))
    show_attempts(job.attempts, console)
    failure: Event | None = None
    for event in events:
        if event.kind == "stage_failed":
            failure = event
            show_failed_attempt(event, job, console)
        elif event.kind == "warning":
            advice = f" ({as_typed(event.warning.advice)})" if event.warning.advice else ""
            console.print(f"\nWarning in {event.stage.lower()}: {event.warning.message}{advice}", style="yellow")
        elif event.kind == "restored":
            line = restored_line(event, failure)
            console.print(f"\n{line[0].upper()}{line[1:]}.")
    if job.resolutions:
        console.print("\nAutomatic values:")
        for resolution in job.resolutions:
            console.print(f"  {resolution.field} = {resolution.value}: {resolution.reason}")
    if job.resolved_spec:
        console.print("\nResolved spec:\n" + toml_text(job.resolved_spec))


def show_attempts(attempts: Sequence[AttemptSummary], console: Console) -> None:
    """Prints the attempts, unless each stage needed only one."""
    if all(attempt.attempt == 1 and attempt.outcome in ("", "COMPLETED") for attempt in attempts):
        return
    console.print("\nAttempts:")
    headers = ["STAGE", "ATTEMPT", "NODE", "OUTCOME", "REASON", "COUNTED", "DURATION"]
    print_rows(console, headers, map(_attempt_row, attempts))


def _attempt_row(attempt: AttemptSummary) -> list[str]:
    took = "" if attempt.seconds is None else duration(attempt.seconds)
    outcome = attempt.outcome or attempt.state
    counted = "yes" if attempt.counted else ""
    return [attempt.stage.lower(), str(attempt.attempt), attempt.node_id, outcome, attempt.reason, counted, took]


def show_failed_attempt(event: Event, of: Job | Evaluation | Export, console: Console) -> None:
    """Prints a failed attempt, without what the failure of its job, evaluation or export and the table of attempts
    contain."""
    failure = event.stage_failed
    said = [] if failure.message in of.message else [f"  {as_typed(failure.message)}"]
    for violation in failure.violations:
        place = violation.field.rpartition(" row ")
        # The description starts with the row, too.
        description = violation.description.removeprefix(f"row {place[2]}: ")
        if f"{description.partition(' [')[0]}" not in of.message:
            said.append(f"  {violation.field}: {description}")
    if failure.advice and failure.advice not in of.advice:
        said.append(f"  Advice: {as_typed(failure.advice)}")
    if failure.last_lines:
        said += ["  Last output:", *(f"  | {line}" for line in failure.last_lines)]
    if said:
        console.print(f"\nAttempt {event.attempt} of {event.stage.lower()}, {failure.reason}:")
        for line in said:
            console.print(line)


_LOSS_ROUNDING = 1e-4
"""Differences of losses up to this, in nats per token, may come from the arithmetic."""


def _show_results(client: Client, job: Job, console: Console) -> None:
    if job.training is not None:
        training = job.training
        best = "" if training.best_eval_loss is None else f", best eval loss {training.best_eval_loss:.4f}"
        took = duration(training.train_runtime_seconds)
        steps = count(training.total_steps, "step")
        console.print(f"Training    {steps} in {took}, mean training loss {training.train_loss:.4f}{best}")
        if needs := _needs(job, training):
            console.print(f"Needed      {needs}")
    if job.evaluation_id:
        show_evaluation(client.evaluations.get(job.evaluation_id), console)
    if job.export_id:
        export = client.exports.get(job.export_id)
        if export.result is not None:
            console.print(f"Package     {export.result.package_path}, {size(export.result.package_size_bytes)}")
            show_forms(export.result, console)
    if job.tuned_model:
        console.print(f"Tuned model {job.tuned_model}{_promotion(job)}")


def show_forms(result: ExportResult, console: Console, *, of_job: bool = True) -> None:
    """Prints each form of the model in a package, how far it is from the checkpoint, or from the base model that was
    exported without a job, and where it was pushed."""
    original = "the checkpoint" if of_job else "the base model"
    # The top folder of method full has no adapter, although its format has that name.
    is_whole = any(
        each.reader == "transformers" and each.format == ExportFormat.ADAPTER and not each.refusal
        for each in result.servable_by
    )
    for form in result.forms:
        where = form.gguf.file if form.gguf else f"{form.path or '.'}/"
        parts = [where, form.dtype, size(form.size_bytes)]
        if form.merge_base and form.format == ExportFormat.GGUF_ADAPTER:
            parts.append(f"compared on the {form.merge_base} weights")
        elif form.merge_base:
            parts.append(f"merged into the {form.merge_base} weights")
        found = form.comparison
        if found is None:
            parts.append(f"compared with {original} by its tensors only{form.not_run and ': '}{form.not_run}")
        else:
            parts.append(f"mean KL to {original} {found.mean_kl:.2g} nats")
            parts.append(f"{found.same_next_token:.1%} equal next tokens")
            parts.append(f"largest difference {found.max_difference:.2g}")
        if form.num_rendered_rows:
            rendered, tokens = ("held-out", "the trained") if of_job else ("general", "its")
            parts.append(f"{count(form.num_rendered_rows, f'{rendered} conversation')} rendered to {tokens} tokens")
        names = {"GGUF": "GGUF", "GGUF_ADAPTER": "GGUF LoRA"} | ({"ADAPTER": "Model"} if is_whole else {})
        name = names.get(form.format, form.format.capitalize())
        console.print(f"{name:<12}{', '.join(parts)}")
        if form.gguf:
            counts = ", ".join(f"{number} {type_}" for type_, number in sorted(form.gguf.tensor_types.items()))
            console.print(f"            tensors: {counts}")
    files = [form.gguf for form in result.forms if form.gguf]
    if files and files[0].modelfile:
        for gap in files[0].modelfile_gaps:
            console.print(f"            The Modelfile has no {gap}")
    if result.hub is not None:
        console.print(f"Hub         {result.hub.repo_id}, {result.hub.revision}: {result.hub.commit_url}")


def show_serving(result: ExportResult, console: Console) -> None:
    """Prints who signed a package, and for each reader the command that serves it, or why there is none."""
    key = result.signing_key_fingerprint
    console.print(f"Signed      {f'by the key {key}' if key else 'no; the exporter has no signing key'}")
    if result.servable_by:
        console.print("\nWhat serves it, in the folder of the package:")
    names = [each.reader + (f" ({each.format.lower()})" if each.format else "") for each in result.servable_by]
    width = max(map(len, names), default=0) + 2
    for name, each in zip(names, result.servable_by, strict=True):
        console.print(f"  {name:<{width}}{each.command or f'no: {each.refusal}'}")


def _promotion(job: Job) -> str:
    """Returns what the gate decided, unless it promoted a model that has not lost anything."""
    match job.gate_decision:
        case GateDecision.REJECT:
            return " (not promoted: rejected by its gate)"
        case GateDecision.INCONCLUSIVE:
            return " (not promoted: its evaluation is inconclusive)"
        case GateDecision.PROMOTE if job.shown_regression:
            return " (promoted, although a regression is shown)"
        case _:
            return ""


def _needs(job: Job, training: TrainingResult) -> str:
    """Returns the measured peak memory and speed beside their estimates."""
    estimate = job.preflight.estimate if job.preflight else None
    parts = []
    if peak := training.peak_gpu_memory_bytes or training.peak_memory_bytes:
        # Main memory is that of all processes, a GPU's that of one; the estimate is that of each.
        processes = 1 if training.peak_gpu_memory_bytes or not estimate else max(estimate.world_size, 1)
        expected = f" (estimate {size(processes * estimate.memory_total_bytes)})" if estimate else ""
        of_all = f" in {processes} processes" if processes > 1 else ""
        parts.append(f"peak memory {size(peak)}{of_all}{expected}")
    if measured := training.train_tokens_per_second:
        expected = f" (estimate {speed(estimate.tokens_per_second)})" if estimate and estimate.tokens_per_second else ""
        parts.append(f"{speed(measured)}{expected}")
    return ", ".join(parts)


def show_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Prints the measured losses and the number of samples, if there are any."""
    result = evaluation.result
    if result is None:
        return
    if result.single_model:
        loss = "" if result.tuned_loss is None else f"loss {result.tuned_loss:.4f} nats per trained token, "
        rows = f"{count(result.num_examples, 'row')}; " if result.num_examples else ""
        console.print(f"Evaluation  {loss}{rows}only {evaluation.model} was measured, so there are no gains")
    elif result.tuned_loss is not None:
        base = "" if result.base_loss is None else f"base {result.base_loss:.4f}, "
        change = "" if evaluation.delta is None else f" ({evaluation.delta:+.4f})"
        rows = count(result.num_examples, "held-out row")
        console.print(f"Evaluation  {base}tuned {result.tuned_loss:.4f}{change} nats per trained token, {rows}")
        is_of_base = not evaluation.against.startswith("ft:") and evaluation.model.startswith("ft:")
        tuned_loss, base_loss = result.tuned_loss, result.base_loss
        if is_of_base and base_loss is not None and (math.isnan(tuned_loss) or tuned_loss - base_loss > _LOSS_ROUNDING):
            console.print("            The tuned model is worse than its base model: do not serve it.")
    elif result.samples or result.metrics:
        console.print(f"Evaluation  {count(len(result.samples), 'sample')}; no held-out rows to measure a loss on")
    show_metrics(result, console)
