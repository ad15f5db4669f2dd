"""A training from input to result, in this process."""

import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chassis.child.pipe import Cancelled
from engine.config.curriculum import Curriculum
from engine.estimate.architecture import Architecture
from engine.estimate.disk import checkpoint_bytes, num_saved
from engine.estimate.memory import Setup
from finetuneflow.v1.event_pb2 import CheckpointSaved, Complete, Eval, Log, Phase, Restored, Warning
from services.trainer.worker.checkpoint import IncompleteCheckpoint
from services.trainer.worker.order import PhaseByPhase
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder


def adapter(folder: Path) -> dict[str, Any]:
    return load_file(folder / "adapter_model.safetensors")


def test_training_emits_phases_metrics_checkpoints_and_result(make_input: Any) -> None:
    """A watcher would otherwise miss a phase, the curve, a checkpoint of the best step, or the figures at the end."""
    sink = Recorder()
    child_input = make_input(gradient_accumulation_steps=2, save_steps=7)

    result = train(child_input, sink)

    assert [p.name for p in sink.of(Phase)] == ["loading_model", "preparing", "training", "saving"]
    assert [(p.index, p.count) for p in sink.of(Phase)] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    logs = sink.of(Log)
    assert [log.step for log in logs] == [5, 10, 15, 20]
    assert logs[-1].loss < logs[0].loss
    assert all(log.total_steps == 20 and log.tokens_per_second > 0 and log.grad_norm > 0 for log in logs)
    for log in logs:
        # The parts of a step do not overlap; rows of other lengths need padding; an epoch of 40 rows has 5 steps.
        parts = [log.data_seconds, log.forward_seconds, log.backward_seconds, log.optimizer_seconds]
        assert all(part > 0 for part in parts) and sum(parts) <= log.seconds_per_step * 1.001
        assert log.samples_per_second == pytest.approx(8 / log.seconds_per_step)
        assert log.padded_tokens_per_second > log.tokens_per_second
        # The peak of a processor is unknown.
        assert not log.HasField("mfu")
    assert logs[-1].eta_seconds == 0 < logs[0].eta_seconds
    assert logs[-1].epoch == pytest.approx(4)
    # 40 rows, 4 epochs, not one token of padding.
    assert logs[-1].num_tokens == 4 * sum(len(ids) for ids in _column(child_input, "train", "input_ids"))
    evals = sink.of(Eval)
    assert [e.step for e in evals] == [5, 10, 15, 20]
    assert evals[-1].perplexity == pytest.approx(math.exp(evals[-1].eval_loss))
    saved = sink.of(CheckpointSaved)
    assert [s.step for s in saved] == [5, 7, 10, 14, 15, 20]
    assert [s.step for s in saved if s.HasField("eval_loss")] == [5, 10, 15, 20]
    for checkpoint in saved:
        folder = child_input.out_dir / checkpoint.path
        assert checkpoint.path == f"checkpoints/step-{checkpoint.step}"
        assert not (folder / "training_args.bin").exists()
        assert json.loads((folder / "checkpoint.json").read_text())["step"] == checkpoint.step
    names = json.loads((folder / "adapter_config.json").read_text())
    assert (names["base_model_name_or_path"], names["revision"]) == ("tiny", "r1")
    (complete,) = sink.of(Complete)
    best = min(evals, key=lambda e: e.eval_loss)
    assert (complete.best_step, complete.best_metric) == (best.step, best.eval_loss)
    assert (result.best_step, result.best_eval_loss) == (best.step, best.eval_loss)
    assert (result.total_steps, result.final_eval_loss) == (20, evals[-1].eval_loss)
    assert result.train_loss == pytest.approx(sum(log.loss for log in logs) / 4)
    assert result.final_train_loss == logs[-1].loss
    assert result.epochs == logs[-1].epoch > 0
    assert result.num_trainable_parameters == sum(t.numel() for t in adapter(folder).values())
    assert result.train_runtime_seconds == pytest.approx(logs[-1].elapsed_seconds, abs=0.5)
    assert result.train_samples_per_second == pytest.approx(160 / result.train_runtime_seconds)
    assert result.peak_memory_bytes > 100 * 2**20
    assert not sink.of(Warning)
    lines = [json.loads(line) for line in (child_input.out_dir / "training_log.json").read_text().splitlines()]
    assert [(line["step"], "eval_loss" in line) for line in lines] == [(n, e) for n in (5, 10, 15, 20) for e in (0, 1)]
    assert [line["loss"] for line in lines if "loss" in line] == [log.loss for log in logs]
    assert [line["eval_loss"] for line in lines if "eval_loss" in line] == [e.eval_loss for e in evals]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpoints_have_the_size_that_preflight_estimates(make_input: Any, tiny_model: Path, method: str) -> None:
    """A job that would fill the disk in its third hour is refused before it starts."""
    sink = Recorder()
    child_input = make_input(method=method, save_steps=3, total_steps=5)
    train(child_input, sink)
    architecture = Architecture.of_folder(tiny_model)
    setup = Setup.of(child_input.config, on_gpu=False, length=24)
    tokenizer = sum((tiny_model / name).stat().st_size for name in ("tokenizer.json", "tokenizer_config.json"))
    expected = checkpoint_bytes(architecture, setup, tokenizer)
    sizes = [_size(child_input.out_dir / saved.path) for saved in sink.of(CheckpointSaved)]
    assert len(sizes) == num_saved(child_input.config, 5)
    assert all(0.8 * expected < size <= expected for size in sizes), (sizes, expected)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*"))


def test_finished_training_is_not_continued(make_input: Any) -> None:
    """A child that died between its last checkpoint and its result would otherwise train past the end."""
    done = train(make_input("done", total_steps=5), Recorder())
    again = Recorder()

    result = train(
        make_input("again", total_steps=5, resume_from=make_input("done").out_dir / "checkpoints/step-5"), again
    )

    assert not again.of(Log) and not again.of(CheckpointSaved)
    assert [restored.checkpoint_step for restored in again.of(Restored)] == [5]
    assert (result.total_steps, result.train_loss, result.best_step) == (5, done.train_loss, done.best_step)
    assert result.final_eval_loss == done.final_eval_loss


def test_skipped_damaged_checkpoint_is_reported(make_input: Any) -> None:
    """Steps that are repeated, and a disk that loses bits, must not stay unnoticed."""
    train(make_input("done", total_steps=5), Recorder())
    sink, more = Recorder(), {"unusable_checkpoints": [{"step": 9, "problem": "the file optimizer.pt is damaged"}]}

    train(
        make_input("again", total_steps=5, resume_from=make_input("done").out_dir / "checkpoints/step-5", more=more),
        sink,
    )

    (warning,) = sink.of(Warning)
    assert warning.reason == "CHECKPOINT_UNUSABLE" and warning.advice
    assert "step 9" in warning.message and "from step 5" in warning.message and "optimizer.pt" in warning.message


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"])
def test_incomplete_checkpoint_is_not_resumed_from(make_input: Any, part: str) -> None:
    """The Trainer would continue without the missing part, with other results and without an error."""
    train(make_input("done", total_steps=1, eval_steps=1), Recorder())
    folder = make_input("done").out_dir / "checkpoints/step-1"
    (folder / part).unlink()
    with pytest.raises(IncompleteCheckpoint, match=part):
        train(make_input("again", resume_from=folder), Recorder())


class _Code:
    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._target,)


@pytest.mark.parametrize("part", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_loading_a_checkpoint_executes_no_code(make_input: Any, tmp_path: Path, part: str) -> None:
    """Otherwise anyone with write access to the artifact store could run programs on a trainer."""
    train(make_input("done", total_steps=1, eval_steps=1), Recorder())
    folder = make_input("done").out_dir / "checkpoints/step-1"
    torch.save(_Code(tmp_path / "ran"), folder / part)

    with pytest.raises(pickle.UnpicklingError):
        train(make_input("again", resume_from=folder), Recorder())

    assert not (tmp_path / "ran").exists()


def test_early_stopping_works_across_resumes(make_input: Any) -> None:
    """Without it, hours of overfitting are paid for; if not restored, every resume adds more steps."""
    settings: dict[str, Any] = {"learning_rate": 1e-9, "early_stopping_patience": 2, "early_stopping_threshold": 0.5}
    settings |= {"eval_steps": 3, "save_steps": 100}
    sink = Recorder()

    result = train(make_input("stopped", **settings), sink)

    assert [e.evaluations_without_improvement for e in sink.of(Eval)] == [0, 1, 2]
    assert result.early_stopped and result.total_steps == 9 == sink.of(CheckpointSaved)[-1].step
    resumed = Recorder()
    train(make_input("resumed", resume_from=make_input("stopped").out_dir / "checkpoints/step-6", **settings), resumed)
    assert [(e.step, e.evaluations_without_improvement) for e in resumed.of(Eval)] == [(9, 2)]


def test_last_step_is_best_without_held_out_rows(make_input: Any) -> None:
    """A job without held-out rows still gives a model, and no figure that was not measured."""
    sink = Recorder()

    result = train(make_input(held_out=False, total_steps=6, save_steps=4), sink)

    assert not sink.of(Eval)
    assert [(s.step, s.best, s.HasField("eval_loss")) for s in sink.of(CheckpointSaved)] == [
        (4, False, False),
        (6, False, False),
    ]
    assert result.best_step == 6
    assert not result.HasField("best_eval_loss") and not result.HasField("final_eval_loss")
    assert not sink.of(Complete)[0].HasField("best_metric")


def test_cancel_ends_training_between_two_steps(make_input: Any) -> None:
    """A cancelled job would otherwise use a machine until it is killed."""
    sink = Recorder("cancel", after_step=3)

    with pytest.raises(Cancelled):
        train(make_input(logging_steps=1), sink)

    assert sink.of(Log)[-1].step == 3
    assert not sink.of(CheckpointSaved) and not sink.of(Complete)


def _column(child_input: Any, part: str, name: str) -> Any:
    from datasets import load_from_disk

    return load_from_disk(str(child_input.data_dir / part))[name]


def test_curriculum_trains_each_phase_in_order_and_reports_its_start(make_input: Any) -> None:
    """Every row of a phase as often as configured, none before its phase; watchers see the current phase."""
    curriculum = Curriculum(["part 0", "part 1"], [1.5, 3.0], [24, 16], per_step=4)
    order = list(PhaseByPhase(curriculum, None, seed=1))
    first, second = order[:36], order[36:]
    assert sorted(first[:24]) == list(range(24)) and set(first[24:]) < set(range(24))
    assert [sorted(second[start : start + 16]) for start in (0, 16, 32)] == [list(range(24, 40))] * 3
    assert order == list(PhaseByPhase(curriculum, None, seed=1)) != list(PhaseByPhase(curriculum, None, seed=2))
    assert [curriculum.phase_at(step) for step in (1, 9, 10, 21)] == [0, 0, 1, 1]
    assert (curriculum.total_steps, curriculum.first_step(1), curriculum.epochs_at(21)) == (21, 10, 4.5)

    sink = Recorder()
    train(make_input(phases=[(24, 1.5), (16, 3.0)], total_steps=21, logging_steps=3), sink)
    begun = [event.detail for event in sink.of(Phase) if "curriculum" in event.detail]
    assert [detail.partition(":")[0] for detail in begun] == [
        "curriculum phase 1 of 2, part 0", "curriculum phase 2 of 2, part 1",
    ]  # fmt: skip
    assert [(log.step, log.extras["phase"]) for log in sink.of(Log)][2:4] == [(9, 1.0), (12, 2.0)]
    assert sink.of(Log)[-1].epoch == 4.5


def test_single_step_has_nonzero_learning_rate(make_input: Any) -> None:
    """With a learning rate of 0 the job succeeded and exported the unchanged base model."""
    child_input = make_input(total_steps=1, warmup_ratio=0.03, held_out=False)
    train(child_input, Recorder())
    weights = adapter(child_input.out_dir / "checkpoints" / "step-1")
    assert all(float(weight.abs().max()) > 0 for name, weight in weights.items() if "lora_B" in name)
