"""The saved activations computed without torch are those that autograd saves."""

import weakref
from typing import Any

import pytest

from engine.config.job import Lora
from engine.estimate.architecture import Architecture
from engine.estimate.memory import Estimator, Setup

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "attn_logit_softcapping": 50.0},
    "gemma3_text": {"head_dim": 16},
    "phi3": {"pad_token_id": 0, "eos_token_id": 2},
}
ROWS, LENGTH = 2, 96


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("method", "precision", "padded"),
    [("lora", "fp32", True), ("lora", "bf16", True), ("full", "fp32", False), ("full", "bf16", True)],
)
def test_saved_bytes_equal_those_of_autograd_hooks(family: str, method: Any, precision: Any, padded: bool) -> None:
    """Activations are most of a training's memory, and an error in one block multiplies by the number of blocks."""
    _compare(family, SIZES | FAMILIES[family], method, precision, padded)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_a_single_key_head_is_counted_as_attention_copies_it(family: str) -> None:
    """Small Gemma models have one key head."""
    _compare(family, SIZES | FAMILIES[family] | {"num_key_value_heads": 1}, "lora", "fp32", True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"use_dora": True, "lora_dropout": 0.0},
        {"layers_to_transform": [1], "target_modules": ["q_proj", "down_proj"]},
        {"target_modules_pattern": r"model\.layers\.0\.mlp\..*_proj"},
    ],
)
def test_variants_of_adapters_save_what_is_counted(settings: dict[str, Any], precision: Any) -> None:
    """DoRA needs most of the memory that a full training does, which is found out too late otherwise."""
    _compare("llama", SIZES, "lora", precision, True, **settings)


@pytest.mark.parametrize(
    ("method", "precision", "padded"),
    [("lora", "fp32", True), ("lora", "bf16", False), ("full", "fp32", False), ("full", "bf16", True)],
)
def test_inl_blocks_save_what_is_counted(method: Any, precision: Any, padded: bool) -> None:
    """Each block saves the tensors of all steps of its integration, which are most of the memory."""
    values = {"hidden_size": 64, "num_hidden_layers": 3, "num_iterations": 4, "vocab_size": 1000}
    _compare("inl", values, method, precision, padded)


def _compare(family: str, values: dict[str, Any], method: Any, precision: Any, padded: bool, **settings: Any) -> None:
    architecture = Architecture.from_config({"model_type": family, **values})
    lora = Lora(r=8, **settings)
    setup = Setup(method, precision, False, ROWS, LENGTH, False, "adamw_torch", lora=lora, padded=padded)
    predicted = Estimator(architecture, setup).saved
    measured = _saved(family, values, method, precision, padded, lora)
    assert predicted == pytest.approx(measured, rel=0.03)


def _saved(family: str, values: dict[str, Any], method: str, precision: str, padded: bool, lora: Lora) -> int:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    from engine.inl.auto_classes import register_inl

    register_inl()
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    base = model.model
    if method == "lora":
        model = get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=8,
                lora_alpha=16,
                lora_dropout=lora.lora_dropout,
                use_dora=lora.use_dora,
                target_modules=lora.target_modules_pattern or lora.target_modules or "all-linear",
                layers_to_transform=lora.layers_to_transform or None,
            ),
        )
    model.train()
    ids = torch.randint(5, 900, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, LENGTH // 2 :] = 0
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: weakref.WeakSet[Any] = weakref.WeakSet()

    class Saved:
        def __init__(self, tensor: Any) -> None:
            self.tensor = tensor

    def save(tensor: Any) -> Saved:
        held = Saved(tensor)
        # What was saved for a result that is not used is freed before the forward pass ends.
        saved.add(held)
        return held

    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda held: held.tensor), cast:
        output = base(input_ids=ids, attention_mask=mask, use_cache=False)
    storages = {held.tensor.untyped_storage().data_ptr(): held.tensor.untyped_storage() for held in saved}
    assert output.last_hidden_state.requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in parameters)
