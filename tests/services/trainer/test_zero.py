"""Trainings by several processes with DeepSpeed's ZeRO stage 2, on the CPU."""

import importlib.util
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from chassis.child.child_process import Child
from finetuneflow.v1.event_pb2 import Eval, Event, Log
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder
from tests.services.trainer.test_ranks import COMMON, figures, ranks_of, run_ranks

MakeInput = Callable[..., Any]

FOLDERS = sorted((Path(__file__).parents[3] / ".tools").glob("deepspeed-*"))
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not FOLDERS and not importlib.util.find_spec("deepspeed"), reason="DeepSpeed is not installed"),
]


@pytest.fixture(autouse=True)
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the trainer's children import DeepSpeed."""
    for folder in FOLDERS[-1:]:
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))
    yield


def two(parallelism: str) -> dict[str, Any]:
    return {"resources": {"world_size": 2, "parallelism": parallelism}}


@pytest.mark.parametrize(
    ("parallelism", "case"),
    [
        ("zero2", {"gradient_accumulation_steps": 2}),
        ("zero2_offload", {"method": "full", "gradient_checkpointing": True}),
        ("zero2", {"method": "full", "label_smoothing_factor": 0.1, "max_grad_norm": 0.0}),
        ("zero2", {"precision": "bf16"}),
    ],
    ids=lambda case: case if isinstance(case, str) else "-".join(case),
)
def test_divided_states_train_like_one_process(
    make_input: MakeInput, tmp_path: Path, parallelism: str, case: dict[str, Any]
) -> None:
    """Dividing the optimizer's states must save memory, and change nothing that is learned or reported."""
    case = COMMON | case
    accumulation = case.get("gradient_accumulation_steps", 1)
    alone, single = Recorder(), make_input("alone", **case | {"gradient_accumulation_steps": 2 * accumulation})
    expected = train(single, alone)

    together = run_ranks(make_input("together", **case, **two(parallelism)), tmp_path)

    assert together.status == 0, together.lines
    assert [failed.message for failed in together.of("stage_failed")] == []
    (completed,) = together.of("stage_completed")
    found = figures(together.of("log"), together.of("eval"))
    tolerance = 1e-2 if case.get("precision") == "bf16" else 1e-4
    for mine, other in zip(found, figures(alone.of(Log), alone.of(Eval)), strict=True):
        assert mine == pytest.approx(other, rel=tolerance)
    norms = [[log.grad_norm for log in logs] for logs in (together.of("log"), alone.of(Log))]
    assert norms[0] == pytest.approx(norms[1], rel=10 * tolerance)
    assert completed.training.best_step == expected.best_step
    name = "model.safetensors" if case.get("method") == "full" else "adapter_model.safetensors"
    weights = [load_file(out / "checkpoints/step-8" / name) for out in (together.out_dir, single.out_dir)]
    assert_close(weights[0], weights[1], rtol=10 * tolerance, atol=tolerance)


@pytest.mark.parametrize(("parallelism", "rank"), [("zero2", 1), ("zero2_offload", 0)])
def test_a_killed_process_ends_the_training_and_the_next_one_goes_on_exactly(
    make_input: MakeInput, tmp_path: Path, parallelism: str, rank: int
) -> None:
    """Each process has a share of the optimizer's states that no other one has."""
    case = COMMON | two(parallelism) | {"lora": {"lora_dropout": 0.1}, "save_steps": 2}
    straight = run_ranks(make_input("straight", **case), tmp_path)

    def kill(event: Event, child: Child) -> None:
        if event.log.step == 5:
            ranks_of(child)[rank].kill()

    killed = run_ranks(make_input("killed", **case), tmp_path, kill)
    newest = max(killed.checkpoints)
    resumed = run_ranks(make_input("resumed", resume_from=killed.checkpoints[newest], **case), tmp_path)

    assert killed.status == -signal.SIGKILL
    assert not killed.of("stage_failed")
    before = {log.step: (log.loss, log.grad_norm, log.learning_rate) for log in straight.of("log")}
    for log in [*killed.of("log"), *resumed.of("log")]:
        assert (log.loss, log.grad_norm, log.learning_rate) == before[log.step], log.step
    assert {log.step for log in resumed.of("log")} == set(range(newest + 1, 9))
    assert {file.name for file in resumed.checkpoints[8].iterdir()} == CHECKPOINT
    for file in CHECKPOINT - {"trainer_state.json", "checkpoint.json", "training_log.jsonl"}:
        assert (resumed.checkpoints[8] / file).read_bytes() == (straight.checkpoints[8] / file).read_bytes(), file
    assert_evaluated_alike(make_input, resumed)
