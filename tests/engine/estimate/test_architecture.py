"""Parameter counts follow exactly from a model's configuration."""

import json
from pathlib import Path

import pytest

from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.estimate.known_architectures import CONFIGS, find_known, known

# Numbers that the publishers and the hub state (for Gemma 3, the text part of the sizes without images).
PUBLISHED = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "phi-3-mini": 3_821_079_552,
    "phi-3-medium": 13_960_238_080,
    "phi-4": 14_659_507_200,
    "phi-4-mini": 3_836_021_760,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "inl-small": 43_087_872,
    "inl-medium": 111_896_832,
    "inl-large": 303_547_392,
    "inl-xlarge": 807_850_496,
    "inl-3b": 1_698_168_832,
    "inl-4b": 2_524_171_008,
}


@pytest.mark.parametrize(("name", "count"), PUBLISHED.items())
def test_parameter_counts_equal_published_ones(name: str, count: int) -> None:
    """Memory, time and cost all depend on this number."""
    assert known(name).num_parameters == count


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("inl-")])
def test_layers_are_those_of_the_implementation_that_trains_them(name: str) -> None:
    """Adapters and quantisation work per layer: without a bias or a fused layer the memory would be wrong."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {"pad_token_id": 0, **CONFIGS[name], "num_hidden_layers": 1}
    kind = values.pop("model_type")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **values))
    mine = Architecture.from_config({**CONFIGS[name], "num_hidden_layers": 1})
    assert mine.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    block = model.model.layers[0]
    linears = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
    assert {layer.name: (layer.rows, layer.columns, layer.bias) for layer in mine.linears} == {
        n: (m.out_features, m.in_features, m.bias is not None) for n, m in linears.items()
    }


def test_known_models_are_found_by_common_names() -> None:
    """`meta-llama/Llama-3.1-8B-Instruct` is gated, but its size is known without access."""
    assert find_known("meta-llama/Llama-3.1-8B-Instruct") == known("llama-3.1-8b")
    assert find_known("meta-llama/Meta-Llama-3.1-70B") == known("llama-3.1-70b")
    assert find_known("google/gemma-2-2b-it") == known("gemma-2-2b")
    assert find_known("HuggingFaceTB/SmolLM2-135M-Instruct@main") == known("smollm2-135m")
    assert find_known("my-own") is None
    with pytest.raises(JobError) as caught:
        known("lama-3.1-8b")
    assert "llama-3.1-8b" in caught.value.message


def test_a_folder_is_read_without_its_weights(tiny_model: Path) -> None:
    """If configuration and weights differ, the tensors decide."""
    found = Architecture.of_folder(tiny_model)
    config = json.loads((tiny_model / "config.json").read_text())
    assert found == Architecture.from_config(config)
    assert found.extra_parameters == 0
    shapes = {
        "model.embed_tokens.weight": (384, 64),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.self_attn.q_proj.bias": (64,),
        "model.layers.0.self_attn.k_proj.weight": (32, 64),
        "model.layers.0.self_attn.v_proj.weight": (32, 64),
        "model.layers.0.self_attn.o_proj.weight": (64, 64),
        "model.layers.0.mlp.gate_proj.weight": (128, 64),
        "model.layers.0.mlp.up_proj.weight": (128, 64),
        "model.layers.0.mlp.down_proj.weight": (64, 128),
        "model.visual.patches.weight": (1000, 1000),
    }
    biased = Architecture.of_tensors(config, shapes)
    assert biased.query_bias
    assert biased.tied
    assert biased.num_parameters == sum(map(_size, shapes.values())) - 1_000_000


def test_an_unusual_architecture_is_counted_by_its_tensors() -> None:
    """An architecture that transformers adds later is still estimated, from its layers."""
    shapes = {"transformer.wte.weight": (1000, 64), "transformer.h.0.attn.c_attn.weight": (64, 192)}
    shapes |= {"transformer.h.0.mlp.c_fc.weight": (64, 256), "transformer.h.0.mlp.c_proj.weight": (256, 64)}
    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 64, "n_head": 4, "vocab_size": 1000, "n_positions": 128}
    found = Architecture.of_tensors(config, shapes)
    assert found.family == "other"
    assert found.module_names() == ["c_attn", "c_fc", "c_proj"]
    assert found.num_parameters == sum(map(_size, shapes.values()))


def test_a_configuration_without_sizes_is_refused() -> None:
    with pytest.raises(JobError) as caught:
        Architecture.from_config({"model_type": "clip"})
    assert caught.value.reason == "UNKNOWN_ARCHITECTURE"


def test_a_size_that_is_text_is_named() -> None:
    """The message said that the field was missing."""
    with pytest.raises(JobError, match=r"hidden_size in its config\.json is '64'"):
        Architecture.from_config({"model_type": "llama", "hidden_size": "64", "num_hidden_layers": 2, "vocab_size": 9})


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size
