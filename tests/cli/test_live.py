import io
import math

from finetuneflow import Client
from finetuneflow.cli.console import SafeConsole
from finetuneflow.cli.lines import Lines
from finetuneflow.cli.live import follow, render
from finetuneflow.cli.plot import plot
from finetuneflow.cli.view import JobView
from finetuneflow.resources.event import Event
from finetuneflow.v1 import event_pb2, stage_result_pb2
from finetuneflow.v1 import fine_tuning_job_pb2 as job_pb
from tests.fakes.gateway import JOB, FakeGateway, history


def screen(view: JobView) -> str:
    console = SafeConsole(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(render(view))
    return captured.get()


def test_the_display_shows_where_the_job_is() -> None:
    view = JobView(JOB, title=JOB, clock=lambda: 100.0)
    events = [Event.from_proto(message) for message in history()]
    for event in events[:15]:
        view.feed(event)
    shown = screen(view)
    assert "✓ preflight" in shown
    assert "● training" in shown
    assert "stage 2 of 4, running" in shown
    assert "step 10/20" in shown
    assert "loss 3.0000" in shown
    assert "! only 12 rows" in shown
    for event in events[15:]:
        view.feed(event)
    assert "eval loss 3.0000 (best 3.0000 at step 20)" in screen(view)
    assert "✓ export" in screen(view)


def test_an_answer_during_training_is_a_line() -> None:
    """Whoever asked for such answers reads them in a log file too."""
    sample = stage_result_pb2.InferenceSample(instruction="What is\n2 + 2?", model_output="It is\n4.", step=10)
    message = event_pb2.Event(stage=job_pb.STAGE_TRAINING, sample=sample)
    assert Lines().of(Event.from_proto(message)) == "training    step 10  What is 2 + 2? → It is 4."
    sample.step = 0
    assert Lines().of(Event.from_proto(event_pb2.Event(stage=job_pb.STAGE_EVALUATION, sample=sample))) is None


def test_each_phase_of_a_curriculum_is_shown_when_it_begins() -> None:
    """Who watches a curriculum sees otherwise only that the loss jumps."""
    lines, view = Lines(), JobView(JOB)
    details = ["3 steps on cpu", *(f"curriculum phase {n} of 2, part {n}: 1 epochs of 4 sequences" for n in (1, 1, 2))]
    shown = []
    for detail in details:
        phase = event_pb2.Phase(name="training", index=3, count=4, detail=detail)
        event = Event.from_proto(event_pb2.Event(stage=job_pb.STAGE_TRAINING, phase=phase))
        view.feed(event)
        shown.append(lines.of(event))
    view.feed(Event.from_proto(event_pb2.Event(stage=job_pb.STAGE_TRAINING, log=event_pb2.Log(step=7, total_steps=9))))
    assert shown[2] is None
    assert shown[3] == "training    training (3 of 4): curriculum phase 2 of 2, part 2: 1 epochs of 4 sequences"
    assert "step 7/9, curriculum phase 2 of 2, part 2" in screen(view)


def test_the_eta_counts_down_between_events() -> None:
    now = [0.0]
    view = JobView(JOB, clock=lambda: now[0])
    message = event_pb2.Event(stage=2, log=event_pb2.Log(step=1, total_steps=9, eta_seconds=60))
    view.feed(Event.from_proto(message))
    now[0] = 15.0
    assert view.eta_seconds == 45.0


def test_steps_made_again_after_a_resume_are_drawn_once() -> None:
    view = JobView(JOB)
    for step in (1, 2, 3, 2, 3, 4):
        view.feed(Event.from_proto(event_pb2.Event(log=event_pb2.Log(step=step, loss=step))))
    assert [step for step, _ in view.losses] == [1, 2, 3, 4]


def test_on_a_terminal_a_curve_and_the_outcome_remain(client: Client, gateway: FakeGateway) -> None:
    gateway.cut_watch_after = [5]
    console = SafeConsole(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    job = follow(client, JOB, console=console)
    assert job.state == "SUCCEEDED"
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "── loss   ── eval loss" in shown
    assert "Evaluation  base 4.0000, tuned 3.0000 (-1.0000)" in shown


def test_a_curve_falls_from_left_to_right() -> None:
    rows = plot({"loss": [(0, 4.0), (5, math.nan), (10, 2.0)]}, width=10, height=4).plain.splitlines()
    assert rows[0].startswith("        4 ┤⢄") or rows[0].split("┤")[1].strip()[0] in "⠑⢄⠉⠈"
    assert rows[0].split("┤")[1][-1] == " "
    assert rows[3].split("┤")[1][-1] != " "
    assert plot({"loss": [(1, math.nan)]}).plain == ""
    assert plot({"loss": [(1, 2.0)]}, width=10, height=2).plain
