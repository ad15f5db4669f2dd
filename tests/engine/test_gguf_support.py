"""Base models that cannot become GGUF files, which should be known before they are trained."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.gguf_support import gguf_refusal

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
