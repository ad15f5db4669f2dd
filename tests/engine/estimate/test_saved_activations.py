"""The saved activations computed without torch are those that autograd saves."""

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


def _compare(family: str, values: dict[str, Any], method: Any, precision: Any, padded: bool) -> None:
    architecture = Architecture.from_config({"model_type": family, **values})
    lora = Lora(r=8)
    setup = Setup(method, precision, False, ROWS, LENGTH, False, "adamw_torch", lora=lora, padded=padded)
    predicted = Estimator(architecture, setup).saved
    measured = _saved(family, values, method, precision, padded)
    assert predicted == pytest.approx(measured, rel=0.03)


def _saved(family: str, values: dict[str, Any], method: str, precision: str, padded: bool) -> int:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **values))
    base = model.model
    if method == "lora":
        model = get_peft_model(
            model,
            LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.05, target_modules="all-linear"),
        )
    model.train()
    ids = torch.randint(5, 900, (ROWS, LENGTH))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, LENGTH // 2 :] = 0
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, Any] = {}

    def save(tensor: Any) -> Any:
        address = tensor.untyped_storage().data_ptr()
        if address not in parameters:
            saved.setdefault(address, tensor)
        return tensor

    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), cast:
        base(input_ids=ids, attention_mask=mask, use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
