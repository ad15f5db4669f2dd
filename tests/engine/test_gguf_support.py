"""Base models that cannot become GGUF files, which should be known before they are trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.gguf_conversion import vocabulary_refusal
from engine.gguf_support import gguf_adapter_refusal, gguf_refusal
from tests.tiny_models import make_tiny_llama_tokenizer, make_tiny_tokenizer

GEMMA_3: dict[str, Any] = {"model_type": "gemma3_text", "head_dim": 128, "num_hidden_layers": 26}


@pytest.mark.parametrize(
    ("config", "files", "words"),
    [
        ({"model_type": "llama"}, [], ""),
        ({**GEMMA_3, "query_pre_attn_scalar": 128}, [], ""),
        ({**GEMMA_3, "query_pre_attn_scalar": 168}, [], "query_pre_attn_scalar is 168"),
        ({"model_type": "gemma3", "text_config": {**GEMMA_3, "query_pre_attn_scalar": 168}}, [], "computes with 128"),
        ({"model_type": "gemma"}, [], "needs tokenizer.model"),
        ({"model_type": "gemma"}, ["tokenizer.model"], ""),
        ({"model_type": "inl"}, [], "no INL models"),
    ],
)
def test_folder_shows_whether_llama_cpp_can_have_the_model(
    tmp_path: Path, config: dict[str, Any], files: list[str], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in files:
        (tmp_path / name).touch()
    found = gguf_refusal(tmp_path)
    assert (found is None) == (not words) and (found is None or words in found[0])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama"}, ""),
        ({"model_type": "gpt2"}, "wrong adapters for models of type gpt2"),
        ({"model_type": "gemma"}, "needs tokenizer.model"),
    ],
)
def test_folder_shows_whether_llama_cpp_can_have_its_adapters(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = gguf_adapter_refusal(tmp_path)
    assert (found is None) == (not words) and (found is None or words in found[0])


@pytest.mark.long
@pytest.mark.parametrize(
    ("architecture", "make", "words"),
    [
        ("LlamaForCausalLM", make_tiny_llama_tokenizer, ""),
        ("LlamaForCausalLM", make_tiny_tokenizer, "how its tokenizer splits texts"),
        ("NewForCausalLM", make_tiny_llama_tokenizer, "does not know its architecture, NewForCausalLM"),
    ],
)
def test_unknown_architecture_or_tokenizer_is_found_without_weights(
    tmp_path: Path, architecture: str, make: Callable[[Path], Path], words: str
) -> None:
    """Found in the export, it costs the whole training."""
    model = make(tmp_path / "model")
    config = {"architectures": [architecture], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    config |= {"num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 384, "max_position_embeddings": 512}
    (model / "config.json").write_text(json.dumps(config))
    found = vocabulary_refusal(model, tmp_path, lambda: None)
    assert (found is None) == (not words) and (found is None or words in found[0])
    assert list(tmp_path.iterdir()) == [model]
