"""Adapter variants from a caller's settings to a package that plain peft loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from finetuneflow import Client
from tests.e2e.conftest import System, unpacked_package

SHORT = {"max_steps": 6, "eval_steps": 3, "logging_steps": 1, "max_length": 64, "learning_rate": 1e-2}


def _loss(model: Any) -> float:
    with torch.inference_mode():
        ids = torch.arange(5, 40)[None]
        return float(model(input_ids=ids, labels=ids).loss)


@pytest.mark.long
def test_pissa_package_is_an_adapter_of_the_unchanged_base(
    system: System, client: Client, rows: Path, tmp_path: Path
) -> None:
    """A server that has the base loaded already cannot change its weights for one adapter."""
    job = client.jobs.create(
        base_model="tiny",
        training_data=str(rows),
        lora={"r": 4, "init_lora_weights": "pissa", "use_rslora": True},
        hyperparameters=SHORT,
        evaluation={"prompts": ["What is 1 plus 1?"], "prompt_epochs": 0.25, "max_new_tokens": 4},
    )
    done = client.jobs.wait(job.id)
    assert done.state == "SUCCEEDED", done
    # 180 rows in steps of 16 make 12 steps an epoch.
    assert {r.field: r.value for r in done.resolutions}["evaluation.prompt_steps"] == "3"
    samples = [event.payload for event in client.jobs.events(job.id) if event.kind == "sample"]
    answered = [(sample.step, sample.instruction) for sample in samples if sample.step]
    assert answered == [(3, "What is 1 plus 1?"), (6, "What is 1 plus 1?")]
    package = unpacked_package(client, job.id, tmp_path)
    config = json.loads((package / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"], config["use_rslora"]) == (8, True, True)
    assert json.loads((package / "training_config.json").read_text())["lora"]["r"] == 4
    base = AutoModelForCausalLM.from_pretrained(system.home / "tiny-model")
    before = _loss(base)
    tuned = PeftModel.from_pretrained(base, package)
    assert _loss(tuned) != pytest.approx(before, rel=1e-6)
    assert _loss(tuned.unload()) == pytest.approx(before)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_qlora_of_the_built_in_model_on_a_cpu(system: System, client: Client, rows: Path, tmp_path: Path) -> None:
    """The method that most users of small machines want; its adapter loads on the quantized base model."""
    job = client.jobs.create(
        base_model="smollm2-135m",
        training_data=str(rows),
        method="qlora",
        lora={"r": 8, "init_lora_weights": "loftq"},
        holdout_fraction=0.02,
        hyperparameters={
            **SHORT,
            "max_steps": 4,
            "eval_steps": 2,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 1,
        },
        evaluation={"num_samples": 1, "max_new_tokens": 8},
    )
    done = client.jobs.wait(job.id)
    assert done.state == "SUCCEEDED", done
    logs = [event.payload for event in client.jobs.events(job.id) if event.kind == "log"]
    # Also after the evaluation of step 2, which would stop gradients on processors with avx512_bf16.
    assert [log.step for log in logs] == [1, 2, 3, 4] and all(log.grad_norm > 0 for log in logs)
    package = unpacked_package(client, job.id, tmp_path)
    assert "load_in_4bit=True" in (package / "README.md").read_text()
    (folder,) = [file.parent for file in (system.home / "models/smollm2-135m").glob("*/model.safetensors")]
    quantized = AutoModelForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
        ),
    )
    assert sum(type(module).__name__ == "Linear4bit" for module in quantized.modules()) == 210
    assert _loss(PeftModel.from_pretrained(quantized, package)) > 0
