"""An operator's package adds callbacks and a loss to trainings without a change of the recipe."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.errors import SystemFailure
from finetuneflow.v1.event_pb2 import Eval, Log, Phase, Warning
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder

MODULE = """
import torch
from transformers import TrainerCallback

class Steps(TrainerCallback):
    def __init__(self, file):
        self.file = file

    def on_step_end(self, args, state, control, **_):
        with self.file.open("a") as file:
            print(state.global_step, file=file)

def watch(training):
    training.callbacks.append(Steps(training.out_dir / "steps"))

def mean(model, inputs, tokens):
    logits = model(**{**inputs, "labels": None}).logits[:, :-1].float()
    labels = inputs["labels"][:, 1:]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / tokens

def same(training):
    training.loss = mean

def tenfold(training):
    training.loss = lambda *given: 10 * mean(*given)

def broken(training):
    raise ValueError("no such column")

class Breaks(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        raise ValueError("no such norm")

def broken_callback(training):
    training.callbacks.append(Breaks())

def broken_loss(training):
    training.loss = lambda model, inputs, tokens: inputs["no such input"]

def too_large_loss(training):
    def fail(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    training.loss = fail
"""
NAMES = ("watch", "same", "tenfold", "broken", "broken_callback", "broken_loss", "too_large_loss")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with extensions, as pip leaves it."""
    site = tmp_path / "site"
    (site / "ours-1.0.dist-info").mkdir(parents=True)
    (site / "ours_for_tests.py").write_text(MODULE)
    (site / "ours-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1.0\n")
    names = "".join(f"{name} = ours_for_tests:{name}\n" for name in NAMES)
    (site / "ours-1.0.dist-info" / "entry_points.txt").write_text(f"[finetuneflow.trainer]\n{names}")
    monkeypatch.syspath_prepend(str(site))


def run(make_input: Callable[..., Any], out: str, *extensions: str) -> tuple[Recorder, Any]:
    child_input = make_input(out, more={"extensions": extensions}, lora={"lora_dropout": 0.0})
    sink = Recorder()
    train(child_input, sink)
    return sink, child_input


@pytest.mark.usefixtures("installed")
def test_callback_is_called_at_each_step(make_input: Callable[..., Any]) -> None:
    sink, child_input = run(make_input, "out", "watch")
    assert (child_input.out_dir / "steps").read_text().split() == [str(step) for step in range(1, 21)]
    assert "with the operator's extensions: watch" in [phase.detail for phase in sink.of(Phase)]


@pytest.mark.usefixtures("installed")
def test_replaced_loss_trains_and_held_out_rows_are_scored_as_ever(make_input: Callable[..., Any]) -> None:
    """A loss that says the same must train the same; another one must not change what evaluation losses mean."""
    plain, _ = run(make_input, "plain")
    same, _ = run(make_input, "same", "same")
    assert [log.loss for log in same.of(Log)] == pytest.approx([log.loss for log in plain.of(Log)], rel=1e-4)
    assert same.of(Eval)[-1].eval_loss == pytest.approx(plain.of(Eval)[-1].eval_loss, rel=1e-4)
    assert [warning.reason for warning in same.of(Warning)] == ["LOSS_REPLACED"]
    tenfold, _ = run(make_input, "tenfold", "tenfold")
    assert tenfold.of(Log)[0].loss > 5 * plain.of(Log)[0].loss
    assert tenfold.of(Eval)[0].eval_loss == pytest.approx(plain.of(Eval)[0].eval_loss, rel=0.5)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken", "'broken' failed: ValueError: no such column"),
        ("broken_callback", "'broken_callback' failed: ValueError: no such norm"),
        ("broken_loss", "'broken_loss' failed: KeyError: 'no such input'"),
        ("wach", "broken, broken_callback, broken_loss, same, tenfold"),
    ],
)
def test_broken_extension_is_the_operators_fault(make_input: Callable[..., Any], name: str, said: str) -> None:
    """A training without what the operator demands would be worse than none."""
    with pytest.raises(SystemFailure, match=said) as failure:
        run(make_input, "out", name)
    assert failure.value.reason == "EXTENSION_FAILED"


@pytest.mark.usefixtures("installed")
def test_memory_that_ends_in_an_extension_is_still_an_error_of_memory(make_input: Callable[..., Any]) -> None:
    """The gateway halves the micro-batches of such a job."""
    with pytest.raises(RuntimeError, match="allocate memory"):
        run(make_input, "out", "too_large_loss")


def test_no_extension_takes_part_unless_it_is_named(make_input: Callable[..., Any], installed: None) -> None:
    """An installed package must not change trainings by itself."""
    sink, child_input = run(make_input, "out")
    assert not (child_input.out_dir / "steps").exists()
    assert torch.isfinite(torch.tensor([log.loss for log in sink.of(Log)])).all()
