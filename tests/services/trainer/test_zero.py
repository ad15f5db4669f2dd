"""Trainings by several processes with DeepSpeed's ZeRO stage 2, on the CPU."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from engine.data.shards import read_shards
from engine.data.spans import IGNORED
from engine.model.adapter import load_adapter
from engine.model.load import load_base
from finetuneflow.v1.event_pb2 import Eval, Log
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder
from tests.services.trainer.test_ranks import COMMON, assert_goes_on_exactly, figures, run_ranks

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


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("parallelism", "method", "rank"), [("zero2", "lora", 1), ("zero2_offload", "full", 0)])
def test_a_killed_process_ends_the_training_and_the_next_one_goes_on_exactly(
    make_input: MakeInput, tmp_path: Path, parallelism: str, method: str, rank: int
) -> None:
    """Each process has a share of the optimizer's states that no other one has."""
    case = COMMON | two(parallelism) | {"method": method, "lora": {"lora_dropout": 0.1}, "save_steps": 2}
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    states = ["optimizer_0.pt", "optimizer_1.pt", "rng_state_0.pth", "rng_state_1.pth"]
    assert_goes_on_exactly(make_input, tmp_path, case, rank, 5, [weights, "scheduler.pt", *states])


def test_a_checkpoint_is_an_adapter_with_the_states_beside_it(
    make_input: MakeInput, tmp_path: Path, tiny_model: Path, data_dir: Path
) -> None:
    """Evaluations and exports read the same files as after any other training, and the store gets no weights twice."""
    ended = run_ranks(make_input("ended", **COMMON | two("zero2")), tmp_path)

    checkpoint = ended.checkpoints[8]
    weights = (checkpoint / "adapter_model.safetensors").stat().st_size
    states = [(checkpoint / f"optimizer_{rank}.pt").stat().st_size for rank in (0, 1)]
    # Two averages of each weight, half of them in each file.
    assert states == pytest.approx([weights, weights], rel=0.1)
    assert sorted(path.name for path in checkpoint.glob("*.pt")) == ["optimizer_0.pt", "optimizer_1.pt", "scheduler.pt"]
    assert [path.name for path in checkpoint.iterdir() if path.is_dir()] == []
    model = load_adapter(load_base(tiny_model, dtype=torch.float32, on="cpu"), checkpoint)
    assert held_out_loss(model, data_dir) == pytest.approx(ended.of("eval")[-1].eval_loss, rel=1e-4)


def test_other_trainings_run_where_deepspeed_is_installed(make_input: MakeInput, tmp_path: Path) -> None:
    """accelerate imports it then, whether it is used or not."""
    ended = run_ranks(make_input("ended", **COMMON | two("ddp") | {"total_steps": 2}), tmp_path)
    assert ended.of("stage_completed"), (ended.of("stage_failed"), ended.lines)


def held_out_loss(model: Any, data_dir: Path) -> float:
    """The mean over the trained tokens of the held-out rows."""
    nll, count = 0.0, 0
    for row in read_shards(data_dir / "eval"):
        labels = torch.tensor(row["labels"][1:])
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        nll += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return nll / count
