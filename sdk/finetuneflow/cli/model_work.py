"""`ftf evaluate`, `ftf export`, `ftf evaluations` and `ftf exports`.

Annotations are evaluated where they stand: those of `make_app` name what it has just made."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from finetuneflow.cli.advice import as_typed, ftf
from finetuneflow.cli.console import error_console
from finetuneflow.cli.download import make_folder, print_downloaded, progress_of
from finetuneflow.cli.evaluation_options import condition, grader_objects, json_object, with_removed
from finetuneflow.cli.evaluation_rows import compare, rows
from finetuneflow.cli.exits import DETACHED, JOB_FAILED
from finetuneflow.cli.lines import Lines, phase_name
from finetuneflow.cli.outcome import show_attempts, show_evaluation, show_failed_attempt, show_forms, show_serving
from finetuneflow.cli.refusals import options_named
from finetuneflow.cli.session import (
    Json,
    Session,
    not_empty,
    print_deleted,
    print_json,
    print_newest,
    session,
    shortened,
    size,
)
from finetuneflow.client import Client
from finetuneflow.evaluations import Evaluations
from finetuneflow.exports import Exports
from finetuneflow.fields import INT32_MAX, INT64_MAX
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.resources.event import Phase
from finetuneflow.resources.export import Export

Work = Evaluation | Export
Methods = Evaluations | Exports

_Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Tuned model, ft:JOB or ft:JOB@STEP, or the id of its job; or a base model.",
        callback=not_empty,
    ),
]
_EVALUATION_OPTIONS = {
    "model": "MODEL",
    "against": "--against",
    "data": "--data",
    "clear_fields": "--clear",
    "spec.num_samples": "--num-samples",
    "spec.prompts": "--prompt",
    "spec.max_new_tokens": "--max-new-tokens",
    "spec.max_rows": "--max-rows",
    "spec.metrics": "--metric",
    "spec.graders": "--graders",
    "spec.gate": "--gate",
    "spec.json_schema": "--json-schema",
    "spec.questions": "--questions",
    "spec.regression": "--regression",
    "spec.harness_tasks": "--harness-task",
    "spec.harness_limit": "--harness-limit",
}
_EXPORT_OPTIONS = {
    "model": "MODEL",
    "formats": "--format",
    "spec.formats": "--format",
    "spec.dtype": "--dtype",
    "spec.merge_base": "--merge-base",
    "spec.gguf_types": "--quantization",
    "spec.hub": "--push",
    "spec.hub.repo_id": "--push",
    "spec.hub.private": "--private",
    "spec.hub.revision": "--revision",
    "spec.hub.commit_message": "--commit-message",
    "secrets.hub_write_token": "--token-secret",
}
"""Paths of the fields of a request → the options of the command."""

_Detach = Annotated[bool, typer.Option("--detach", "-d", help="Create it without following it.")]


def evaluate(
    ctx: typer.Context,
    model: _Model,
    data: Annotated[
        list[str] | None,
        typer.Option(help="File, dataset id or hf://OWNER/NAME of rows. Repeatable. Default: the job's held-out rows."),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Model to compare it with. Default: its base model; a base model is measured alone.")
    ] = "",
    num_samples: Annotated[
        int | None, typer.Option(min=0, max=100, help="Answered rows that are shown. Default: the job's.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="Prompt that both models answer. Repeatable. Default: the job's.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Maximum tokens of an answer. Default: the job's.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(min=0, max=10_000, help="Held-out rows that both models answer. Default: the job's.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(help="Metric of the answers, such as exact_match. Repeatable. Default: the job's."),
    ] = None,
    graders: Annotated[
        Path | None,
        typer.Option(help="JSON file with grader objects. Default: the job's.", exists=True, dir_okay=False),
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(help="JSON Schema for the metric json_schema. Default: the job's.", exists=True, dir_okay=False),
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="File or dataset id of critical questions. Default: the job's.")
    ] = None,
    regression: Annotated[
        str | None,
        typer.Option(
            help="general, none, or a file or dataset id of rows that show what was lost. Default: the job's."
        ),
    ] = None,
    harness_task: Annotated[
        list[str] | None,
        typer.Option(help="Task of lm-evaluation-harness; ftf probe lists them. Repeatable. Default: none."),
    ] = None,
    harness_limit: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="Rows of each of these tasks. Default: all.")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            help="Condition: METRIC>=VALUE, METRIC<=VALUE or 'gain(METRIC)>VALUE'. Repeatable. Default: the job's."
        ),
    ] = None,
    clear: Annotated[
        list[str] | None,
        typer.Option(
            help="Remove the job's own prompts, metrics, graders, gate, questions or json_schema. Repeatable.",
            metavar="SETTING",
        ),
    ] = None,
    detach: _Detach = False,
    json: Json = False,
) -> None:
    """Evaluate a model, and compare it with its base or another one; or measure a base model alone."""
    removable = {
        "prompts": prompt,
        "metrics": metric,
        "graders": None if graders is None else grader_objects(graders),
        "gate": None if gate is None else [condition(text) for text in gate],
        "questions": questions,
        "json_schema": None if json_schema is None else json_object(json_schema),
    }
    here = session(ctx)
    with options_named(_EVALUATION_OPTIONS, as_json=json):
        made = here.client.evaluations.create(
            model,
            against=against,
            data=data or (),
            num_samples=num_samples,
            max_new_tokens=max_new_tokens,
            max_rows=max_rows,
            regression=regression,
            harness_tasks=harness_task,
            harness_limit=harness_limit,
            **with_removed(removable, clear or ()),
        )
    _created(here, made, detach=detach, json=json)


def export(
    ctx: typer.Context,
    model: _Model,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="Format of the package: adapter, merged, gguf or gguf_adapter. Repeatable. Default: the job's; a base "
            "model needs merged or gguf.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Number format of merged weights: float32, bfloat16 or float16. Default: the job's."),
    ] = None,
    merge_base: Annotated[
        str | None,
        typer.Option(help="Base weights that a QLoRA adapter is merged into: trained or original. Default: the job's."),
    ] = None,
    quantization: Annotated[
        list[str] | None,
        typer.Option(
            help="Type of a GGUF file: f32, f16, bf16, q8_0, and with llama.cpp's library q4_k_m and others, see "
            "ftf probe. Repeatable. Default: the job's, or else q8_0, and f16 for gguf_adapter."
        ),
    ] = None,
    push: Annotated[
        str | None, typer.Option(help="Model repository of the hub to push the package to.", metavar="NAMESPACE/NAME")
    ] = None,
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of that repository.", show_default="private"),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch of that repository; made if missing. Default: main.")
    ] = None,
    commit_message: Annotated[
        str | None, typer.Option(help="Message of the commit. Default: names the job and the step.")
    ] = None,
    token_secret: Annotated[
        str | None,
        typer.Option(help="Secret with the token for the push, see ftf secrets. Default: the job's.", metavar="SECRET"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to download the package into. Default: no download.", file_okay=False)
    ] = None,
    detach: _Detach = False,
    json: Json = False,
) -> None:
    """Export the model of a job again, or a base model."""
    about_push = {"private": private, "revision": revision, "commit_message": commit_message}
    hub = {name: value for name, value in about_push.items() if value is not None}
    if push is None and (hub or token_secret is not None):
        given = [_EXPORT_OPTIONS[f"spec.hub.{name}"] for name in hub] + ["--token-secret"] * (token_secret is not None)
        if private is False:
            given[0] = "--public"
        raise typer.BadParameter(
            f"is missing: {', '.join(given)} {'are' if len(given) > 1 else 'is'} about a push to the hub. Name the "
            "repository with --push NAMESPACE/NAME, or leave them out.",
            param_hint="--push",
        )
    if detach and out is not None:
        raise typer.BadParameter("cannot be combined with --detach.", param_hint="--out")
    if out is not None:
        make_folder(out)
    here = session(ctx)
    with options_named(_EXPORT_OPTIONS, as_json=json):
        made = here.client.exports.create(
            model,
            formats=format_ or (),
            dtype=dtype,
            merge_base=merge_base,
            gguf_types=quantization or (),
            hub=None if push is None else {"repo_id": push, **hub},
            secrets=None if token_secret is None else {"hub_write_token": token_secret},
        )
    try:
        _created(here, made, detach=detach, json=json, downloads=out is not None)
    except typer.Exit as stopped:
        if out is not None and stopped.exit_code == DETACHED:
            error_console().print(f"Download it later: {ftf(f'download {made.id} --out {out}')}")
        raise
    if out is not None:
        paths = here.client.exports.download(made.id, out, progress=progress_of(here, as_json=json))
        if not json:
            print_downloaded(here.console, paths, as_json=False)


def make_app(noun: str, methods: Callable[[Client], Any]) -> typer.Typer:
    """Makes the command group of one kind; `noun` is "evaluation" or "export"."""
    app = typer.Typer(no_args_is_help=True, help=f"List, follow, cancel and delete {noun}s.")
    a = f"an {noun}"
    Id = Annotated[str, typer.Argument(metavar=noun.upper(), help=f"Id of {a}.", callback=not_empty)]

    def list_(
        ctx: typer.Context,
        job: Annotated[str, typer.Option(help="Only those of this job's model.")] = "",
        state: Annotated[list[str] | None, typer.Option(help="Only those in this state. Repeatable.")] = None,
        limit: Annotated[int, typer.Option(min=1, max=INT32_MAX, help="Maximum number to list, newest first.")] = 20,
        json: Json = False,
    ) -> None:
        here = session(ctx)

        def newest(most: int) -> Iterator[Work]:
            found: Iterator[Work] = methods(here.client).list(job_id=job, states=state or [], limit=most)
            return found

        if json:
            print_json(*(work.proto for work in newest(limit)))
        else:
            print_newest(here.console, ["ID", "STATE", "MODEL", "RESULT", "CREATED"], newest, _row, limit)

    def get(ctx: typer.Context, work_id: Id, json: Json = False) -> None:
        here = session(ctx)
        work = methods(here.client).get(work_id)
        if json:
            print_json(work.proto)
        else:
            _show(work, methods(here.client), here.console)

    def watch(
        ctx: typer.Context,
        work_id: Id,
        after: Annotated[int, typer.Option(min=0, max=INT64_MAX, help="Only events after this sequence.")] = 0,
        json: Json = False,
    ) -> None:
        _follow(session(ctx), methods, noun, work_id, json=json, after_sequence=after)

    def cancel(ctx: typer.Context, work_id: Id, json: Json = False) -> None:
        here = session(ctx)
        work = methods(here.client).cancel(work_id)
        if json:
            print_json(work.proto)
        else:
            here.console.print(f"{work.id} {work.state}")

    def delete(ctx: typer.Context, work_id: Id, json: Json = False) -> None:
        here = session(ctx)
        methods(here.client).delete(work_id)
        print_deleted(here.console, work_id, as_json=json)

    app.command("list", help=f"List the newest {noun}s: those asked for alone and those left by jobs.")(list_)
    app.command("get", help=f"Show one {noun} with its attempts.")(get)
    app.command("watch", help=f"Follow {a} from its first event to its end. Ctrl-C leaves it running.")(watch)
    app.command("cancel", help=f"Cancel {a}.")(cancel)
    app.command("delete", help=f"Delete {a} that has ended, with its history and files.")(delete)
    return app


def evaluations_app() -> typer.Typer:
    """Makes `ftf evaluations`."""
    app = make_app("evaluation", lambda client: client.evaluations)
    app.command("rows")(rows)
    app.command("compare")(compare)
    return app


def exports_app() -> typer.Typer:
    """Makes `ftf exports`."""
    app = make_app("export", lambda client: client.exports)
    app.command("download")(download)
    return app


def download(
    ctx: typer.Context,
    export_id: Annotated[str, typer.Argument(metavar="EXPORT", help="Id of the export.", callback=not_empty)],
    out: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder to download into.", show_default="./ID", file_okay=False),
    ] = None,
    form: Annotated[
        list[str] | None,
        typer.Option(
            help="Only the files of this form: adapter, merged, gguf or gguf_adapter. Repeatable. Default: all, and "
            "the zip."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Download and verify the files of an export. An interrupted download resumes."""
    here = session(ctx)
    folder, progress = out or Path(export_id), progress_of(here, as_json=json)
    paths = here.client.exports.download(export_id, folder, forms=form or (), progress=progress)
    print_downloaded(here.console, paths, as_json=json)


def _created(here: Session, work: Work, *, detach: bool, json: bool, downloads: bool = False) -> None:
    """Prints the work and follows it. With `downloads` the caller downloads the package, so nobody is told to."""
    noun = type(work).__name__
    group = f"{noun.lower()}s"
    if not detach:
        if not json:
            here.console.print(f"{noun} {work.id}")
        _follow(here, lambda client: getattr(client, group), noun.lower(), work.id, json=json, downloads=downloads)
    elif json:
        print_json(work.proto)
    else:
        here.console.print(f"{noun} {work.id}\nFollow it: {ftf(f'{group} watch {work.id}')}")


def _follow(
    here: Session,
    methods: Callable[[Client], Any],
    noun: str,
    work_id: str,
    *,
    json: bool,
    after_sequence: int = 0,
    downloads: bool = False,
) -> None:
    """Shows the events and the outcome; returns if it has SUCCEEDED, otherwise exits with a code."""
    lines = Lines()

    def say(line: str) -> None:
        here.console.print(line)
        here.console.file.flush()

    quiet = json
    status = here.console.status(Text())
    try:
        if here.console.is_terminal and not quiet:
            status.start()
        events = methods(here.client).watch(
            work_id,
            after_sequence=after_sequence,
            on_disconnect=lambda _: None if quiet else say("The server does not answer; reconnecting ..."),
            on_reconnect=lambda: None if quiet else say("Reconnected; no events were missed."),
        )
        for event in events:
            if json:
                print_json(event.proto)
                continue
            if isinstance(event.payload, Phase):
                status.update(_phase(event.payload))
            if (line := lines.of(event)) is not None:
                say(line)
    except KeyboardInterrupt:
        console = error_console()
        console.print(f"\nDetached; the {noun} continues. Follow it: {ftf(f'{noun}s watch {work_id}')}")
        console.print(f"Cancel it: {ftf(f'{noun}s cancel {work_id}')}")
        raise typer.Exit(DETACHED) from None
    finally:
        status.stop()
    work = methods(here.client).get(work_id)
    if not json:
        _show_outcome(work, methods(here.client), here.console)
        if isinstance(work, Export) and work.state == "SUCCEEDED" and not downloads:
            _tell_download(work, here.console)
    if work.state != "SUCCEEDED":
        raise typer.Exit(JOB_FAILED)


def _phase(phase: Phase) -> Text:
    """Returns the current phase with its progress, for a line that is replaced."""
    done = "" if phase.fraction is None else f", {phase.fraction:.0%}"
    return Text(f"{phase_name(phase)}{done}" + (f": {phase.detail}" if phase.detail else ""), overflow="ellipsis")


def _show_outcome(work: Work, source: Any, console: Console) -> None:
    """Prints the outcome, with the last output of failed attempts; `source` lists the events."""
    noun = type(work).__name__
    if work.state == "FAILED":
        console.print(f"{noun} {work.id} failed: {work.reason}: {as_typed(work.message)}", style="red")
        console.print(f"Fault: {work.fault or 'unknown'}")
        if work.advice:
            console.print(f"Advice: {as_typed(work.advice)}")
        if not work.belongs_to_job:
            for event in source.events(work.id, kinds=["stage_failed"]):
                show_failed_attempt(event, work, console)
    elif work.state != "SUCCEEDED":
        console.print(f"{noun} {work.id} is {work.state}.", style="yellow")
    else:
        console.print(f"{noun} {work.id} succeeded.", style="green")
        _show_result(work, console)


def _show_result(work: Work, console: Console) -> None:
    if isinstance(work, Evaluation):
        show_evaluation(work, console)
        for sample in work.result.samples if work.result is not None else ():
            console.print(f"\nPrompt      {shortened(sample.instruction)}")
            if sample.expected_output:
                console.print(f"Expected    {shortened(sample.expected_output)}")
            if work.result is not None and work.result.single_model:
                console.print(f"Answer      {shortened(sample.model_output)}")
                continue
            console.print(f"Base        {shortened(sample.base_output)}")
            console.print(f"Tuned       {shortened(sample.model_output)}")
    elif work.result is not None:
        console.print(f"Package     {size(work.result.package_size_bytes)}")
        show_forms(work.result, console, of_job=bool(work.job_id))
        show_serving(work.result, console)


def _tell_download(export: Export, console: Console) -> None:
    console.print(f"\nDownload the package: {ftf(f'download {export.id}')}")


def _show(work: Work, source: Any, console: Console) -> None:
    console.print(work.id)
    console.print(f"State       {work.state}" + (f": {work.reason}" if work.reason else ""))
    if work.waiting:
        console.print(f"Waiting     {work.waiting}")
    against = f" against {work.against}" if isinstance(work, Evaluation) and work.against else ""
    console.print(f"Model       {work.model}{against}")
    if work.belongs_to_job:
        console.print(f"Made by     job {work.job_id}")
    if work.progress is not None and work.progress.phase and not work.ended:
        progress = work.progress
        done = "" if progress.phase_fraction is None else f", {progress.phase_fraction:.0%}"
        name = progress.phase.replace("_", " ")
        console.print(f"Phase       {name} ({progress.phase_index} of {progress.phase_count}){done}")
    if work.create_time is not None:
        ended = f", ended {work.end_time.astimezone():%H:%M:%S}" if work.end_time else ""
        console.print(f"Created     {work.create_time.astimezone():%Y-%m-%d %H:%M:%S}{ended}")
    if work.state == "FAILED":
        _show_outcome(work, source, console)
    _show_result(work, console)
    if isinstance(work, Export) and work.result is not None:
        _tell_download(work, console)
    show_attempts(work.attempts, console)


def _row(work: Work) -> list[str]:
    created = f"{work.create_time.astimezone():%Y-%m-%d %H:%M}" if work.create_time else ""
    result = ""
    if isinstance(work, Evaluation):
        result = "" if work.delta is None else f"loss {work.delta:+.4f}"
        if work.result is not None and work.result.single_model and work.result.tuned_loss is not None:
            result = f"loss {work.result.tuned_loss:.4f}, one model"
        if work.result is not None and work.result.gate is not None and work.result.gate.decision is not None:
            result = ", ".join(filter(None, [result, work.result.gate.decision.lower()]))
        if work.result is not None and work.result.shown_regression:
            result = ", ".join(filter(None, [result, "regression shown"]))
    elif work.result is not None:
        result = size(work.result.package_size_bytes)
    return [work.id, work.state, work.model, result, created]
