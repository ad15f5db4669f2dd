"""Loading, scoring and generating with a random Llama."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn.modules import Linear4bit
from torch.nn import functional

from engine.config.job import Lora, Quantization
from engine.errors import JobError
from engine.model import load
from engine.model.adapter import attach_lora, load_adapter
from engine.model.generate import generate
from engine.model.score import score
from tests.tiny_models import make_tiny_model

ROWS = [
    {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, 7, 8, 9, 10]},
    {"input_ids": [20, 21, 22], "labels": [-100, 21, 22]},
    {"input_ids": [30, 31, 32, 33], "labels": [30, -100, -100, 33]},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(folder: Path) -> Any:
    return load.load_base(folder, dtype=torch.float32, on="cpu")


def test_loss_is_mean_over_tokens_for_any_batch_size(model: Any) -> None:
    """A mean of means would give short rows more weight, and other tools would report another loss."""
    total, count = 0.0, 0
    for row in ROWS:
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].detach()
        labels = torch.tensor(row["labels"][1:])
        total += functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum").item()
        count += int((labels != -100).sum())
    shares: list[float] = []

    found = score(model, ROWS, shares.append)

    assert found.loss == pytest.approx(total / count, rel=1e-6)
    assert (found.num_examples, found.num_trained_tokens) == (3, count)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert shares[-1] == 1.0


def test_settings_of_a_wrong_type_are_named(folder: Path, tmp_path: Path) -> None:
    """The owner of the model can correct them; a crash of the worker would be repeated instead."""
    wrong = shutil.copytree(folder, tmp_path / "wrong")
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(JobError) as caught:
        load.load_base(wrong, dtype=torch.float32, on="cpu")
    assert caught.value.reason == "NOT_A_MODEL"


def test_rows_without_trained_tokens_are_an_error(model: Any) -> None:
    """A loss of 0 or NaN would be reported as a result."""
    with pytest.raises(ValueError, match="no row has a trained token"):
        score(model, [{"input_ids": [5, 6], "labels": [5, -100]}], lambda _: None)


def test_batched_generation_equals_generation_per_prompt(model: Any) -> None:
    """Padding must not change the generated text."""
    prompts = [[5, 6, 7], [40], list(range(50, 70))]
    seen: list[list[int]] = []

    together = generate(model, prompts, max_new_tokens=6, stop_ids=[2], on_tokens=seen.append)

    assert together == [generate(model, [p], max_new_tokens=6, stop_ids=[2])[0] for p in prompts]
    assert [step[0] for step in seen][: len(together[0])] == together[0]
    first = together[1][0]
    assert generate(model, [[40]], max_new_tokens=6, stop_ids=[first]) == [[]]


def test_adapter_round_trip_keeps_public_base_id(model: Any, folder: Path, tmp_path: Path) -> None:
    """An adapter that names a path of the machine it was trained on cannot be loaded anywhere else."""
    adapted = attach_lora(
        model, Lora(r=2), model_dir=folder, base_id="tiny", revision="r1", quantised=False, gradient_checkpointing=False
    )
    targets = {name.split(".")[-1] for name, module in adapted.named_modules() if hasattr(module, "lora_A")}
    assert targets == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    adapted.save_pretrained(str(tmp_path))
    expected = score(adapted, ROWS, lambda _: None)

    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", "r1")
    assert str(folder) not in (tmp_path / "adapter_config.json").read_text()
    fresh = load_adapter(load.load_base(folder, dtype=torch.float32, on="cpu"), tmp_path)
    assert score(fresh, ROWS, lambda _: None) == expected


def test_an_adapter_is_never_read_from_a_pickle(model: Any, tmp_path: Path) -> None:
    """Loading a pickle runs its author's code."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="safetensors"):
        load_adapter(model, tmp_path)


@pytest.mark.parametrize("double", [True, False])
def test_4_bit_layers_are_kept_differentiable(folder: Path, double: bool) -> None:
    """On CPUs with avx512_bf16 an evaluation would otherwise stop all learning, without an error."""
    quantised = load.load_base(
        folder, dtype=torch.float32, on="cpu", quantization=Quantization(bnb_4bit_use_double_quant=double)
    )
    layers = [module for module in quantised.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert all(layer.quant_state.nested is double for layer in [layers[0]] if hasattr(layer, "quant_state"))


@pytest.mark.parametrize(
    ("method", "precision", "on", "expected"),
    [
        ("lora", "bf16", "cpu", torch.float32),
        ("lora", "bf16", "cuda", torch.bfloat16),
        ("qlora", "fp16", "cuda", torch.float16),
        ("full", "bf16", "cuda", torch.float32),
    ],
)
def test_weights_have_dtype_required_for_training(method: Any, precision: Any, on: Any, expected: Any) -> None:
    """With trained weights in bf16 most updates would round to zero."""
    assert load.weights_dtype(method, precision, on) is expected
