"""Following a job: a live display on a terminal, lines in a pipe, JSON for programs."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetuneflow.cli.console import make_console
from finetuneflow.cli.lines import Lines, curriculum_phase, log_figures, phase_name
from finetuneflow.cli.outcome import show_outcome
from finetuneflow.cli.plot import plot
from finetuneflow.cli.session import duration, print_json
from finetuneflow.cli.training_log import written
from finetuneflow.cli.view import STAGES, JobView
from finetuneflow.client import Client
from finetuneflow.resources.job import Job, Stage

_DISCONNECTED = "The server does not answer; reconnecting ..."


def follow(
    client: Client,
    job_id: str,
    *,
    console: Console | None = None,
    json: bool = False,
    after_sequence: int = 0,
    outcome: bool = True,
    training_log: Path | None = None,
) -> Job:
    """Shows a job until it ends, then its outcome (if `outcome`), and returns the job in its final state.

    With `json`, prints each event as a line of JSON and nothing else. `training_log`: file to which the metrics are
    written as they arrive. KeyboardInterrupt leaves the job running and is
    raised again. Raises NotFound, and ServerUnreachable if no server answers for 60 s.
    """
    console = console or make_console()
    if json:
        for event in written(client.jobs.watch(job_id, after_sequence=after_sequence), training_log):
            print_json(event.proto)
        return client.jobs.get(job_id)
    if console.is_terminal:
        view = _follow_live(client, job_id, console, after_sequence, training_log)
        if len(view.losses) > 1:
            console.print(plot({"loss": view.losses, "eval loss": view.eval_losses}, width=min(72, console.width - 14)))
    else:
        _follow_lines(client, job_id, console, after_sequence, training_log)
    job = client.jobs.get(job_id)
    if outcome:
        show_outcome(client, job, console, told=not console.is_terminal)
    return job


def _follow_lines(
    client: Client, job_id: str, console: Console, after_sequence: int, training_log: Path | None
) -> None:
    lines = Lines()

    def say(line: str) -> None:
        console.print(line)
        console.file.flush()

    events = client.jobs.watch(
        job_id,
        after_sequence=after_sequence,
        on_disconnect=lambda _: say(_DISCONNECTED),
        on_reconnect=lambda: say("Reconnected; no events were missed."),
    )
    for event in written(events, training_log):
        line = lines.of(event)
        if line is not None:
            say(line)


def _follow_live(
    client: Client, job_id: str, console: Console, after_sequence: int, training_log: Path | None
) -> JobView:
    job = client.jobs.get(job_id)
    title = " · ".join(filter(None, [job_id, str(job.spec.get("base_model", "")), str(job.spec.get("recipe", ""))]))
    view = JobView(job_id, title=title)
    if after_sequence:
        # The earlier events with state and stage are not replayed.
        view.state, view.stage = job.state, job.stage

    def connected(yes: bool) -> None:
        view.disconnected = not yes

    events = client.jobs.watch(
        job_id,
        after_sequence=after_sequence,
        on_disconnect=lambda _: connected(False),
        on_reconnect=lambda: connected(True),
    )
    with Live(_Display(view), console=console, refresh_per_second=4, transient=True):
        for event in written(events, training_log):
            view.feed(event)
    console.print(stages_line(view))
    return view


class _Display:
    """Renders the view at each refresh, so that the ETA counts down between events."""

    def __init__(self, view: JobView) -> None:
        self._view = view

    def __rich__(self) -> RenderableType:
        return render(self._view)


def render(view: JobView) -> RenderableType:
    """Renders the live display of a job."""
    parts: list[RenderableType] = [Text(view.title, style="bold", overflow="ellipsis", no_wrap=True), stages_line(view)]
    parts.append(_activity(view))
    if view.log is not None or view.eval is not None:
        parts.append(_figures(view))
    parts += [Text(f"! {note}", style="yellow", overflow="ellipsis", no_wrap=True) for note in view.notes[-3:]]
    if view.disconnected:
        parts.append(Text(_DISCONNECTED, style="yellow"))
    return Group(*parts)


def stages_line(view: JobView) -> Text:
    """Renders the stages with a mark for done, current and future ones."""
    text = Text()
    for stage in STAGES:
        if stage in view.done:
            text.append(f"✓ {stage.lower()}  ", style="green")
        elif stage == view.stage:
            text.append(f"● {stage.lower()}  ", style="bold cyan")
        else:
            text.append(f"○ {stage.lower()}  ", style="dim")
    return text


def _activity(view: JobView) -> RenderableType:
    attempt = f", attempt {view.attempt}" if view.attempt > 1 else ""
    label = f"stage {view.stage_index} of {len(STAGES)}{attempt}, {view.state.lower()}"
    phase = view.phase
    done, total, count = 0.0, 1.0, ""
    if phase is not None:
        label += f": {phase_name(phase)}"
        done = phase.fraction or 0.0
        count = phase.detail
    if (
        view.stage == Stage.TRAINING
        and view.log is not None
        and view.log.total_steps
        and Stage.TRAINING not in view.done
    ):
        done, total = view.log.step, view.log.total_steps
        place = "" if phase is None else curriculum_phase(phase)
        count = ", ".join(filter(None, [f"step {view.log.step}/{view.log.total_steps}", place]))
    row = Table.grid(padding=(0, 1))
    row.add_row(Text(label), ProgressBar(total=total, completed=done, width=28), Text(count))
    return row


def _figures(view: JobView) -> Text:
    parts = []
    if view.log is not None:
        parts.append(log_figures(view.log))
    if view.eval is not None:
        best = f" (best {view.best_eval.eval_loss:.4f} at step {view.best_eval.step})" if view.best_eval else ""
        parts.append(f"eval loss {view.eval.eval_loss:.4f}{best}")
    eta = view.eta_seconds if view.stage == Stage.TRAINING else None
    if eta is not None:
        parts.append(f"ETA {duration(eta)}")
    return Text("  ".join(parts))
