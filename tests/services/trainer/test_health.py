"""Trainings that break down: what their owner is told, and what is kept."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from chassis.child.pipe import failure_of
from engine.config.job import Hyperparameters
from engine.errors import JobError
from finetuneflow.v1.event_pb2 import CheckpointSaved, Log, Warning
from finetuneflow.v1.fine_tuning_job_pb2 import FAULT_USER_ERROR
from services.trainer.worker.health import Health
from services.trainer.worker.progress import Progress
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder, rows

POISON = 350
"""A token that no row has, unless a test puts it there."""


def poisoned_model(model: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_rows(folder: Path, training: Sequence[dict[str, list[int]]]) -> Path:
    Dataset.from_list(list(training)).save_to_disk(str(folder / "train"))
    return folder


def overflow_at_poison(weights: dict[str, torch.Tensor]) -> None:
    """Makes the first layer overflow at POISON: only its embedding has a value in the first dimension."""
    weights["model.embed_tokens.weight"][:, 0] = 0
    weights["model.embed_tokens.weight"][POISON, 0] = 1
    weights["model.layers.0.self_attn.o_proj.weight"][0] = 0
    for name in ("gate_proj", "up_proj"):
        weights[f"model.layers.0.mlp.{name}.weight"][:, 0] = 1e36


@pytest.mark.parametrize(
    "settings",
    [
        {"gradient_accumulation_steps": 2},
        {"group_by_length": True},
        {"packing": True, "per_device_train_batch_size": 1},
        {"phases": [(24, 1.0), (16, 1.0)]},
    ],
    ids=["shuffled", "grouped", "packed", "phased"],
)
def test_row_that_makes_the_loss_nan_is_named(
    make_input: Any, tiny_model: Path, data_dir: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """The job was green, and its package held NaN. Among a million rows, nobody finds the one at fault."""
    sink, training = Recorder(), rows(40, 1)
    row = training[30]
    row["input_ids"] = [*row["input_ids"][:-1], POISON]
    # Gradients of other rows would overflow in the first layer, too.
    child_input = make_input(
        held_out=False, logging_steps=1, save_steps=1, lora={"layers_to_transform": [1]}, **settings
    )
    folder = write_rows(tmp_path / "data", training)
    if "phases" in settings:
        shutil.copy(child_input.data_dir / "prepared.json", folder)
    child_input.data_dir = folder
    child_input.model.path = poisoned_model(tiny_model, tmp_path / "poisoned", overflow_at_poison)

    with pytest.raises(JobError) as raised:
        train(child_input, sink)

    error, completed = raised.value, max((log.step for log in sink.of(Log)), default=0)
    assert error.reason == "LOSS_NOT_FINITE" and f"At step {completed + 1} the loss is nan" in error.message
    named = [violation.field for violation in error.violations]
    assert "training row 30" in named and "training row 30" in error.message
    # The micro-batch, not the whole step; a packed sequence of 64 tokens stands for its rows.
    assert len(named) <= 8
    assert failure_of(error).fault == FAULT_USER_ERROR
    # What was trained before is whole, and on disk.
    saved = [child_input.out_dir / checkpoint.path for checkpoint in sink.of(CheckpointSaved)]
    assert len(saved) == completed
    for folder in saved:
        weights = load_file(folder / "adapter_model.safetensors").values()
        assert all(bool(torch.isfinite(weight).all()) for weight in weights)
    lines = (child_input.out_dir / "training_log.json").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, completed + 1))


def test_diverging_training_fails_instead_of_succeeding(make_input: Any, tiny_model: Path, tmp_path: Path) -> None:
    """Hours of a machine for a model of NaN, which the job called a success."""

    def amplify(weights: dict[str, torch.Tensor]) -> None:
        # At this rate a small model may just stay bad, on one processor and not on another.
        weights["model.norm.weight"] *= 1e9

    sink = Recorder()
    diverging = {"learning_rate": 1.0, "warmup_steps": 1, "max_grad_norm": 0.0, "optim": "sgd"}
    child_input = make_input(**diverging, method="full")
    child_input.model.path = poisoned_model(tiny_model, tmp_path / "amplified", amplify)

    with pytest.raises(JobError, match=r"nan|inf") as raised:
        train(child_input, sink)

    assert raised.value.reason == "LOSS_NOT_FINITE" and "learning_rate" in raised.value.advice
    assert all(math.isfinite(log.loss) and math.isfinite(log.grad_norm) for log in sink.of(Log))


def test_gradient_that_is_not_finite_changes_no_weight(make_input: Any, tiny_model: Path, tmp_path: Path) -> None:
    """The loss of the step is sound; one update would make every weight NaN, and the next loss blames other rows."""
    child_input = make_input(held_out=False)
    child_input.model.path = poisoned_model(
        tiny_model, tmp_path / "steep", lambda weights: weights["model.norm.weight"].mul_(1e25)
    )

    with pytest.raises(JobError, match=r"At step 1 the norm of the gradient is inf\. Rows: ") as raised:
        train(child_input, Recorder())

    assert len(raised.value.violations) == 4


def test_loss_after_a_gradient_on_the_device_that_was_not_finite_blames_its_step() -> None:
    """On a GPU the norm of a gradient is read later than the update that it spoils."""
    progress = Progress(step=6)
    health = Health(Recorder(), Hyperparameters(), progress)
    health.rows = lambda step, _: [f"row of step {step}"]
    health.check_gradient(torch.zeros((), device="meta"))
    progress.step = 7
    health._grad_norm = math.inf

    with pytest.raises(JobError, match=r"The gradient of step 7 was not finite .* Rows: row of step 7\."):
        health.check_loss(math.nan, 0)


def test_fp16_may_skip_steps_but_not_all() -> None:
    """Its loss scaler starts too high on purpose; if it never finds a scale, nothing is trained."""
    progress = Progress(step=1)
    health = Health(Recorder(), Hyperparameters(precision="fp16"), progress)
    health.check_gradient(torch.tensor(math.inf))
    health.check_log(math.inf, last=False)
    for _ in range(24):
        health.check_skipped(True)
    health.check_skipped(False)
    with pytest.raises(JobError, match="The gradients of 25 steps"):
        for _ in range(25):
            health.check_skipped(True)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights_that_are_not_finite_are_not_saved(value: float) -> None:
    """A checkpoint of them is one from which no training can go on, and the best one may be deleted for it."""
    model = torch.nn.Linear(4, 4)
    health = Health(Recorder(), Hyperparameters(), Progress(step=3))
    health.check_weights(model)
    model.weight.data[1, 2] = value
    with pytest.raises(JobError, match="After step 3 trained weights are NaN or infinite"):
        health.check_weights(model)


def test_spike_of_the_loss_is_reported_with_its_row(make_input: Any, tmp_path: Path) -> None:
    """A damaged row among thousands shows nowhere else, and a watcher does not read every line."""
    sink = Recorder()
    training = [{"input_ids": list(range(10, 22)), "labels": list(range(10, 22))} for _ in range(60)]
    training[3] = {"input_ids": list(range(200, 180, -1)), "labels": list(range(200, 180, -1))}
    child_input = make_input(
        total_steps=60, method="full", held_out=False, logging_steps=1, per_device_train_batch_size=1
    )
    child_input.data_dir = write_rows(tmp_path / "data", training)

    train(child_input, sink)

    (warning,) = sink.of(Warning)
    assert warning.reason == "LOSS_SPIKE" and warning.message.endswith(" Rows: training row 3.")
    spike = max(sink.of(Log)[16:], key=lambda log: log.loss)
    assert f"At step {spike.step} the loss is {spike.loss:.4g}" in warning.message


def test_divergence_in_the_first_steps_is_reported_at_once(make_input: Any) -> None:
    """A median of 16 steps comes when the machine has long trained in vain."""
    sink = Recorder()
    child_input = make_input(
        total_steps=8, method="full", held_out=False, logging_steps=1, learning_rate=1.0, warmup_ratio=0.0
    )
    train(child_input, sink)
    (warning,) = sink.of(Warning)
    assert warning.reason == "LOSS_SPIKE" and "the training diverges" in warning.message
    assert "learning_rate" in warning.advice


@pytest.mark.parametrize(
    "losses",
    [
        [2.0, 2.4, 9.0, 1.9, 2.2, 8.8, 2.0, 2.1],
        [6.1, 6.3, 7.5, 8.2, 7.9, 6.5, 5.9, 5.0],
        [0.2, 3.9, 4.1, 0.4, 5.2, 5.1, 5.5, 0.3],
        [9.0, 8.0, 7.0, 6.9, 7.4, 6.8, 6.2, 5.1],
    ],
    ids=["single odd rows", "a model without training", "rows of two kinds", "a falling loss"],
)
def test_first_steps_of_ordinary_trainings_are_not_reported(losses: list[float]) -> None:
    """A warning that is wrong once is not read a second time."""
    sink, progress = Recorder(), Progress()
    health = Health(sink, Hyperparameters(), progress)
    health.guessing_loss = math.log(400)
    for progress.step, loss in enumerate(losses, 1):
        health.check_step(loss)
    assert not sink.of(Warning)


def test_gradient_that_stays_zero_is_reported_once(make_input: Any, tiny_model: Path, tmp_path: Path) -> None:
    """A job that learns nothing looks like one that has converged."""
    sink, child_input = Recorder(), make_input(logging_steps=1, total_steps=6, held_out=False)
    child_input.model.path = poisoned_model(
        tiny_model, tmp_path / "dead", lambda weights: weights["model.norm.weight"].zero_()
    )

    train(child_input, sink)

    (warning,) = sink.of(Warning)
    assert warning.reason == "GRADIENT_ZERO" and warning.message.startswith("At step 2 the gradient is exactly 0")
    assert warning.message.count("training row") == 4
