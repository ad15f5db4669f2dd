"""Trainings that start from the adapter of another one: trained further, or kept below a new one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from chassis.child.pipe import Paused
from engine.model import load
from engine.model.adapter import load_adapter
from engine.model.score import score
from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Phase
from services.trainer.worker.methods import trainable_model
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder
from tests.services.trainer.test_adapters import VARIANTS

START = "ft:ftjob_1@10"
# Not those whose weights are saved as another kind of adapter; what becomes of them is tested as plain LoRA.
CONTINUED = ["rslora", "dora", "one-block", "pattern", "head-and-embedding", "mlp-in-full", "tokens"]


@pytest.fixture
def start(make_input: Any) -> Any:
    """Trains a first adapter; returns its checkpoint."""

    def trained(method: str = "lora", **lora: Any) -> Path:
        child_input = make_input("source", total_steps=10, method=method, lora=lora, save_steps=10)
        train(child_input, Recorder())
        return child_input.out_dir / "checkpoints/step-10"

    return trained


def started(make_input: Any, out: str, folder: Path | None, mode: str = "continue", **settings: Any) -> Any:
    """Input of a training that starts from the checkpoint in `folder`."""
    child_input = make_input(
        out, more={"start": {"path": str(folder), "manifest_sha256": "b" * 64} if folder else None}, **settings
    )
    child_input.config.start_from, child_input.config.start_mode = START, mode
    return child_input


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).logits
    return found


def before_training(child_input: Any) -> Any:
    return trainable_model(child_input.config, child_input.model, "cpu", None, child_input.start.path)


def tuned(tiny_model: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), adapter)


@pytest.mark.parametrize("name", CONTINUED)
def test_continued_training_begins_with_the_same_weights(
    name: str, start: Any, make_input: Any, tmp_path: Path
) -> None:
    """A tensor that is not loaded would be trained anew, and what it had learned would be lost."""
    folder = start(**VARIANTS[name])
    model = before_training(started(make_input, "next", folder, lora=VARIANTS[name]))
    model.save_pretrained(tmp_path / "saved")
    expected, found = weights(folder), weights(tmp_path / "saved")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_continued_training_improves_on_where_it_started(start: Any, make_input: Any, tiny_model: Path) -> None:
    folder, sink = start(), Recorder()
    child_input = started(make_input, "next", folder)
    train(child_input, sink)
    held_out = list(load_from_disk(child_input.data_dir / "eval"))
    losses = [score(tuned(tiny_model, folder), held_out, lambda _: None).loss, sink.of(Eval)[0].eval_loss]
    assert losses[1] < losses[0]
    assert [phase.detail for phase in sink.of(Phase) if phase.name == "loading_model"] == [
        f"tiny with the adapter {START}"
    ]


@pytest.mark.parametrize(
    "settings", [{"r": 4}, {"r": 6, "lora_alpha": 10, "use_rslora": True}, {"init_lora_weights": "pissa"}]
)
def test_new_adapter_is_saved_as_one_with_the_first(
    settings: dict[str, Any], start: Any, make_input: Any, tiny_model: Path
) -> None:
    """A server loads one adapter, on the base model as it is."""
    folder, sink = start(r=3, lora_alpha=8, use_rslora=True), Recorder()
    child_input = started(make_input, "next", folder, "new", lora=settings)
    torch.testing.assert_close(logits(before_training(child_input)), logits(tuned(tiny_model, folder)))

    train(child_input, sink)

    saved = child_input.out_dir / sink.of(CheckpointSaved)[-1].path
    config = json.loads((saved / "adapter_config.json").read_text())
    own = child_input.config.lora.r * (2 if "init_lora_weights" in settings else 1)
    assert config["r"] == own + 3
    held_out = list(load_from_disk(child_input.data_dir / "eval"))
    loss = score(tuned(tiny_model, saved), held_out, lambda _: None).loss
    assert loss == pytest.approx(sink.of(Eval)[-1].eval_loss, rel=1e-5)
    assert loss < score(tuned(tiny_model, folder), held_out, lambda _: None).loss


def test_first_adapter_is_not_trained_by_the_second(start: Any, make_input: Any) -> None:
    """Its dropout too: it would train another model than the one that is saved."""
    folder = start(r=3)
    child_input = started(make_input, "next", folder, "new", lora={"lora_dropout": 0.0})
    model = before_training(child_input)
    assert torch.equal(logits(model), logits(model.train()))
    train(child_input, Recorder())
    expected, found = weights(folder), weights(child_input.out_dir / "checkpoints/step-20")
    for name, value in expected.items():
        kept = found[name][4:] if ".lora_A." in name else found[name][:, 4:]
        # Of r = 3 and r = 4, both with lora_alpha = 32.
        torch.testing.assert_close(kept, value if ".lora_A." in name else value * 4 / 3)


def test_new_adapter_on_a_quantised_base(start: Any, make_input: Any, tiny_model: Path) -> None:
    """The first one cannot be added to weights of 4 bits."""
    folder, sink = start("qlora"), Recorder()
    child_input = started(make_input, "next", folder, "new", method="qlora")

    def base() -> Any:
        return load.load_base(tiny_model, dtype=torch.float32, on="cpu", quantization=child_input.config.quantization)

    torch.testing.assert_close(logits(before_training(child_input)), logits(load_adapter(base(), folder)))
    train(child_input, sink)
    saved = child_input.out_dir / sink.of(CheckpointSaved)[-1].path
    held_out = list(load_from_disk(child_input.data_dir / "eval"))
    loss = score(load_adapter(base(), saved), held_out, lambda _: None).loss
    assert loss == pytest.approx(sink.of(Eval)[-1].eval_loss, rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("mode", "lora"), [("continue", {}), ("new", {}), ("new", {"init_lora_weights": "pissa", "use_rslora": True})]
)
def test_resumed_training_equals_an_uninterrupted_one(
    mode: str, lora: dict[str, Any], start: Any, make_input: Any
) -> None:
    folder = start()
    whole = started(make_input, "whole", folder, mode, lora=lora)
    train(whole, Recorder())
    with pytest.raises(Paused):
        train(started(make_input, "first", folder, mode, lora=lora), Recorder("pause", after_step=10))
    resume_from = max((make_input("first").out_dir / "checkpoints").iterdir(), key=lambda f: int(f.name[5:]))
    assert resume_from.name != "step-20"
    kept = folder if mode == "new" else None
    train(started(make_input, "second", kept, mode, lora=lora, resume_from=resume_from), Recorder())
    expected, found = (weights(make_input(out).out_dir / "checkpoints/step-20") for out in ("whole", "second"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
