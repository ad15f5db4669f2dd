"""A training that was killed at any step has the same weights, curve and best step as an uninterrupted one."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from chassis.child.pipe import Paused
from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Log
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from services.trainer.worker.recipe import train
from tests.services.trainer.children import Child, run
from tests.services.trainer.parts import Recorder

STEPS = 20
# 40 rows, 8 a step: an epoch ends every 5 steps. Logs, evaluations and saves come at other steps than that.
COMMON: dict[str, Any] = {
    "lr_scheduler_type": "cosine",
    "warmup_steps": 4,
    "gradient_accumulation_steps": 2,
    "logging_steps": 3,
    "eval_steps": 6,
    "save_steps": 4,
    "early_stopping_patience": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "shuffled": {},
    "grouped": {"group_by_length": True},
    "packed": {"packing": True, "per_device_train_batch_size": 1},
    # 36 rows, then 120: the border lies within step 5, and epochs of 16 rows end at every second one.
    "phased": {"phases": [(24, 1.5), (16, 7.5)]},
    "impatient": {"learning_rate": 1e-9, "early_stopping_threshold": 0.5, "early_stopping_patience": 2},
    "full": {"method": "full", "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8},
    "quantised": {"method": "qlora", "optim": "adamw_torch"},
}
# With a checkpoint half way to its name, before any was reported; between two saves; at the end of an epoch; after an
# evaluation whose checkpoint is not written yet; right after a save.
DEATHS = (
    "checkpoint.written",
    "training.step-7",
    "training.step-10",
    "training.evaluated-12",
    "checkpoint.emitted-16",
)
STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "checkpoint.json")

MakeInput = Callable[..., Any]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> dict[str, Any]:
    return COMMON | CASES[request.param]


def reported_values(children: Sequence[Child], kind: type[Log] | type[Eval]) -> dict[int, tuple[float, ...]]:
    """Returns the reported values by step, except those that depend on the clock; asserts that a repeated step has the
    same values."""
    seen: dict[int, tuple[float, ...]] = {}
    for child in children:
        for event in child.of(kind.__name__.lower()):
            if isinstance(event, Log):
                figures = (event.loss, event.learning_rate, event.grad_norm, event.epoch, event.num_tokens)
            else:
                figures = (event.eval_loss, event.best, event.evaluations_without_improvement, event.epoch)
            assert seen.setdefault(event.step, figures) == figures
    return seen


def result(child: Child) -> TrainingResult:
    (completed,) = child.of("stage_completed")
    kept: TrainingResult = completed.training
    for name in kept.DESCRIPTOR.fields_by_name:
        if name.endswith(("_seconds", "_per_second")) or name == "peak_memory_bytes":
            kept.ClearField(name)
    return kept


def assert_same_checkpoint(found: Path, expected: Path) -> None:
    """Weights, optimizer, schedule, random states, totals."""
    weights = sorted(file.name for file in expected.glob("*.safetensors"))
    assert weights
    for name in (*weights, *STATE):
        assert (found / name).read_bytes() == (expected / name).read_bytes(), f"{found.name}/{name}"


def logged(child: Child) -> list[tuple[float, ...]]:
    """Returns the lines of training_log.json, except what depends on the clock."""
    lines = [json.loads(line) for line in (child.out_dir / "training_log.json").read_text().splitlines()]
    names = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm", "num_tokens")
    return [tuple(line.get(name) for name in names) for line in lines]


def assert_same_as_uninterrupted(children: Sequence[Child], uninterrupted: Child) -> None:
    for kind in (Log, Eval):
        assert reported_values(children, kind) == reported_values([uninterrupted], kind)
    for child in children:
        for step, folder in child.checkpoints.items():
            assert_same_checkpoint(folder, uninterrupted.checkpoints[step])
    assert max(children[-1].checkpoints) == max(uninterrupted.checkpoints)
    assert logged(children[-1]) == logged(uninterrupted) != []
    assert result(children[-1]) == result(uninterrupted)


def run_with_deaths(make_input: MakeInput, case: dict[str, Any], deaths: Sequence[str]) -> list[Child]:
    """Runs one child per death and one that finishes; each resumes from the newest reported checkpoint."""
    children: list[Child] = []
    reported: dict[int, Path] = {}
    for number, death in enumerate([*deaths, ""]):
        newest = max(reported, default=0)
        child_input = make_input(f"life{number}", resume_from=reported.get(newest), **case)
        child = run(child_input, die_at=death)
        assert child.status == (-signal.SIGKILL if death else 0), child.stderr
        restored = [(e.checkpoint_step, e.first_step, e.manifest_sha256) for e in child.of("restored")]
        assert restored == ([(newest, newest + 1, "a" * 64)] if newest else [])
        reported |= child.checkpoints
        children.append(child)
    return children


@pytest.mark.long
def test_training_killed_several_times_has_same_result_as_uninterrupted(
    make_input: MakeInput, case: dict[str, Any]
) -> None:
    """A user whose machine died would otherwise get another model than the one they asked for."""
    uninterrupted = run(make_input("straight", **case))

    children = run_with_deaths(make_input, case, DEATHS)

    assert_same_as_uninterrupted(children, uninterrupted)
    assert result(uninterrupted).early_stopped == (case["early_stopping_patience"] > 0)


@pytest.mark.long
@pytest.mark.parametrize("case", ["grouped"], indirect=True)
def test_paused_and_drained_training_loses_no_step(make_input: MakeInput, case: dict[str, Any]) -> None:
    """Before training began, in the middle of an epoch, at an evaluation, and at the end of an epoch: what a pause or a
    trainer that is drained hands over is what the next one goes on from, on another machine or the same."""
    case |= {"logging_steps": 1}
    uninterrupted, last = Recorder(), Recorder()
    expected = train(make_input("straight", **case), uninterrupted)
    final = f"checkpoints/step-{expected.total_steps}"
    newest, logs = None, []

    for number, step in enumerate((0, 2, 5, 9)):
        child_input, sink = make_input(f"life{number}", resume_from=newest, **case), Recorder("pause", after_step=step)
        with pytest.raises(Paused):
            train(child_input, sink)
        logs += sink.of(Log)
        assert [log.step for log in logs] == list(range(1, len(logs) + 1))
        if saved := sink.of(CheckpointSaved):
            assert saved[-1].step == len(logs) == step + 1
            newest = child_input.out_dir / saved[-1].path
    child_input = make_input("last", resume_from=newest, **case)
    found = train(child_input, last)

    assert [log.loss for log in [*logs, *last.of(Log)]] == [log.loss for log in uninterrupted.of(Log)]
    assert (found.best_step, found.best_eval_loss) == (expected.best_step, expected.best_eval_loss)
    assert_same_checkpoint(child_input.out_dir / final, make_input("straight", **case).out_dir / final)


@pytest.mark.parametrize("case", ["grouped", pytest.param("packed", marks=pytest.mark.long)], indirect=True)
def test_resume_with_smaller_micro_batches_trains_same_rows_per_step(
    make_input: MakeInput, case: dict[str, Any]
) -> None:
    """Otherwise a retry with smaller micro-batches after running out of memory would train a different model.

    40 rows in steps of 12: the last step of an epoch is partial, and both resumptions are in the middle of an epoch.
    """
    case |= {"logging_steps": 1, "lora": {"lora_dropout": 0.0}}
    micro_batch, accumulation = 4, 1 if "packing" in case else 3
    children: list[Child] = []
    reported: dict[int, Path] = {}
    for death, parts in (("", 1), ("training.step-7", 1), ("training.step-14", 2), ("", 4)):
        case["per_device_train_batch_size"] = micro_batch // parts
        case["gradient_accumulation_steps"] = accumulation * parts
        newest = reported.get(max(reported, default=0))
        child = run(make_input(f"life{len(children)}", resume_from=newest, **case), die_at=death)
        assert child.status == (-signal.SIGKILL if death else 0), child.stderr
        if children:
            reported |= child.checkpoints
        children.append(child)
    uninterrupted, *resumed = children

    found = {log.step: log for child in resumed for log in child.of("log")}
    for expected in uninterrupted.of("log"):
        log = found[expected.step]
        assert (log.num_tokens, log.learning_rate) == (expected.num_tokens, expected.learning_rate)
        assert log.loss == pytest.approx(expected.loss, rel=1e-4)
    assert result(resumed[-1]).best_step == result(uninterrupted).best_step


@pytest.mark.long
@pytest.mark.parametrize("step", range(1, STEPS, 3))
def test_training_killed_at_any_step_has_same_result_as_uninterrupted(
    make_input: MakeInput, case: dict[str, Any], step: int
) -> None:
    uninterrupted = run(make_input("straight", **case))
    if step in range(1, result(uninterrupted).total_steps):
        assert_same_as_uninterrupted(run_with_deaths(make_input, case, [f"training.step-{step}"]), uninterrupted)
