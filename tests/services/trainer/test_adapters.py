"""Adapter variants, from a job's configuration to an adapter that plain peft loads on the unchanged base."""

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
from engine.estimate.architecture import Architecture
from engine.estimate.disk import checkpoint_bytes
from engine.estimate.memory import Estimator, Setup
from engine.model.score import score
from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Log
from services.trainer.worker.recipe import train
from tests.services.trainer.parts import Recorder

VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "olora": {"init_lora_weights": "olora"},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-approximate-rslora": {"init_lora_weights": "pissa_niter_4", "use_rslora": True},
    "pissa-with-norm": {"init_lora_weights": "pissa", "modules_to_save": ["norm"]},
    "one-block": {"layers_to_transform": [1]},
    "pattern": {"target_modules_pattern": r".*\.1\.self_attn\.(q|v)_proj"},
    "head-and-embedding": {"modules_to_save": ["lm_head"]},
    "mlp-in-full": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "tokens": {"trainable_tokens": ["#", "$"]},
}
"""Settings of lora by name."""


@pytest.mark.parametrize("name", VARIANTS)
def test_variant_trains_and_its_adapter_fits_the_unchanged_base(name: str, make_input: Any, tiny_model: Path) -> None:
    """A package that needs a changed base, or our code, could be served by nobody else."""
    sink = Recorder()
    child_input = make_input(lora=VARIANTS[name])
    trained_on, held_out = (list(load_from_disk(child_input.data_dir / part)) for part in ("train", "eval"))

    result = train(child_input, sink)

    assert all(log.grad_norm > 0 for log in sink.of(Log))
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    before = score(base, trained_on, lambda _: None).loss
    tuned = PeftModel.from_pretrained(base, child_input.out_dir / sink.of(CheckpointSaved)[-1].path)
    assert score(tuned, trained_on, lambda _: None).loss < before
    assert score(tuned, held_out, lambda _: None).loss == pytest.approx(sink.of(Eval)[-1].eval_loss, rel=1e-5)
    estimator = Estimator(Architecture.of_folder(tiny_model), Setup.of(child_input.config, on_gpu=False, length=24))
    assert result.num_trainable_parameters == estimator.num_trained_parameters


@pytest.mark.long
@pytest.mark.parametrize("name", ["pissa", "olora", "pissa-with-norm", "dora", "head-and-embedding", "tokens"])
def test_resumed_training_equals_an_uninterrupted_one(name: str, make_input: Any) -> None:
    """PiSSA and OLoRA change the base weights, which a resumed training has to change in the same way."""
    whole = make_input("whole", lora=VARIANTS[name])
    train(whole, Recorder())
    with pytest.raises(Paused):
        train(make_input("first", lora=VARIANTS[name]), Recorder("pause", after_step=10))
    resume_from = max((make_input("first").out_dir / "checkpoints").iterdir(), key=lambda f: int(f.name[5:]))
    assert resume_from.name != "step-20"
    train(make_input("second", lora=VARIANTS[name], resume_from=resume_from), Recorder())

    expected, found = (
        load_file(make_input(out).out_dir / "checkpoints/step-20/adapter_model.safetensors")
        for out in ("whole", "second")
    )
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("name", ["pissa", "olora", "pissa-approximate-rslora"])
def test_converted_adapter_has_twice_the_rank_and_the_same_scale(name: str, make_input: Any) -> None:
    """A program that loads the adapter multiplies by alpha / r, or with rsLoRA by alpha / √r."""
    child_input = make_input(total_steps=2, lora={**VARIANTS[name], "r": 4, "lora_alpha": 8}, save_steps=2)
    train(child_input, Recorder())
    checkpoint = child_input.out_dir / "checkpoints/step-2"
    config = json.loads((checkpoint / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert config["lora_alpha"] == pytest.approx(8 * 2**0.5 if config["use_rslora"] else 16)
    tensors = load_file(checkpoint / "adapter_model.safetensors")
    assert {t.shape[0 if "lora_A" in key else 1] for key, t in tensors.items()} == {8}


@pytest.mark.parametrize("name", ["pissa", "dora", "head-and-embedding"])
def test_checkpoints_have_the_size_that_preflight_estimates(name: str, make_input: Any, tiny_model: Path) -> None:
    """A disk that is full in the third hour costs the whole job."""
    child_input = make_input(total_steps=2, lora=VARIANTS[name], save_steps=2)
    train(child_input, Recorder())
    setup = Setup.of(child_input.config, on_gpu=False, length=24)
    tokenizer = sum((tiny_model / file).stat().st_size for file in ("tokenizer.json", "tokenizer_config.json"))
    expected = checkpoint_bytes(Architecture.of_folder(tiny_model), setup, tokenizer)
    size = sum(file.stat().st_size for file in (child_input.out_dir / "checkpoints/step-2").rglob("*"))
    assert 0.8 * expected < size <= expected
