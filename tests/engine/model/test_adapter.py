"""Adapters on quantised and tied base models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.utils.integrations import dequantize_module_weight
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from engine.config.job import Lora, Quantization
from engine.model import load
from engine.model.adapter import attach_lora, load_adapter
from tests.tiny_models import make_tiny_model, make_tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_tiny_tokenizer(tmp_path_factory.mktemp("model") / "tied")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _attached(folder: Path, lora: Lora, quantization: Quantization | None = None) -> Any:
    model = load.load_base(folder, dtype=torch.float32, on="cpu", quantization=quantization)
    return attach_lora(
        model, lora, model_dir=folder, base_id="tiny", revision="r1", quantised=quantization is not None,
        gradient_checkpointing=False,
    )  # fmt: skip


def _logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.arange(5, 25)[None]).logits
    return logits


def _train(model: Any, steps: int = 3) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        ids = torch.arange(5, 25)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("rslora", [False, True])
def test_loftq_starts_closer_to_the_unquantised_weights(folder: Path, rslora: bool) -> None:
    """It exists for that: the training would otherwise start with the whole error of the quantisation."""
    stored = load_file(folder / "model.safetensors")
    lora = Lora(r=16, init_lora_weights="loftq", use_rslora=rslora)
    plain, compensated = (_attached(folder, value, Quantization()) for value in (Lora(r=16), lora))
    errors = []
    for model in (plain, compensated):
        layer = model.base_model.model.model.layers[0].mlp.gate_proj
        weight = dequantize_module_weight(layer.get_base_layer()) + layer.get_delta_weight("default")
        errors.append((weight - stored["model.layers.0.mlp.gate_proj.weight"]).norm().item())
    assert errors[1] < 0.8 * errors[0]
    exact = _logits(load.load_base(folder, dtype=torch.float32, on="cpu"))
    assert (_logits(compensated) - exact).norm() < (_logits(plain) - exact).norm()


@pytest.mark.parametrize(("bits", "dora"), [(4, False), (4, True), (8, False)])
def test_adapter_of_a_quantised_base_learns_and_fits_the_base(
    folder: Path, tmp_path: Path, bits: Any, dora: bool
) -> None:
    """QLoRA and 8-bit trainings on a node without a GPU; the adapter is for the same base."""
    model = _attached(folder, Lora(r=4, use_dora=dora), Quantization(bits=bits))
    before = _logits(model)
    _train(model)
    after = _logits(model)
    assert not torch.equal(before, after)
    model.save_pretrained(tmp_path)
    again = load_adapter(
        load.load_base(folder, dtype=torch.float32, on="cpu", quantization=Quantization(bits=bits)), tmp_path
    )
    torch.testing.assert_close(_logits(again), after, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_tied_head_and_embedding_are_trained_as_one(tied: Path, tmp_path: Path, name: str) -> None:
    """Trained apart, they could not be merged into a model that has one matrix for both."""
    model = _attached(tied, Lora(r=4, modules_to_save=[name]))
    head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    assert head.data_ptr() == embedding.data_ptr() and head.requires_grad
    _train(model)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    saved = [tensor for key, tensor in tensors.items() if "lora_" not in key]
    assert len(saved) == 2 and torch.equal(*saved)
    fresh = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tied), tmp_path)
    torch.testing.assert_close(_logits(fresh), _logits(model))


def test_only_the_embeddings_of_the_named_tokens_change(tied: Path) -> None:
    """A new role marker is learned without touching what the model knows of other tokens."""
    model = _attached(tied, Lora(r=4, trainable_tokens=["!", "#"]))
    _train(model)
    model.merge_and_unload()
    before = load.load_base(tied, dtype=torch.float32, on="cpu").get_input_embeddings().weight
    after = model.base_model.model.get_input_embeddings().weight
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3, 5]
