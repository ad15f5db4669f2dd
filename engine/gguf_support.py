"""Base models that llama.cpp cannot have, as far as the files of their folders show it.

Whether llama.cpp knows the architecture and the tokenizer, its converter says: `gguf_conversion.vocabulary_refusal`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from engine.inl_sizes import MODEL_TYPE

_LAYERS_OF_27B: Final = {"gemma2": 46, "gemma3": 62}
"""Layers of the models in which llama.cpp scales the attention otherwise than by the size of a head."""
_SENTENCEPIECE_ONLY: Final = frozenset({"baichuan", "gemma", "gemma2", "minicpm", "nemotron", "orion", "phi3"})
"""Types of models whose tokenizer the converter reads from tokenizer.model only."""
_TRANSPOSED: Final = frozenset({"gpt2", "openai-gpt"})
"""Types of models that keep the weights of layers transposed: the converter mixes up the two matrices of an adapter."""
AS_MERGED: Final = "Export it as merged, which transformers and vLLM load."
AS_GGUF: Final = "Export it as gguf, whose weights contain the adapter."


def gguf_refusal(folder: Path) -> tuple[str, str] | None:
    """Returns why a base model's folder cannot become a GGUF file of the same model, and what to do; None if nothing
    shows that."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= config.get("text_config") or {}
    kind, scale = str(config.get("model_type")).removesuffix("_text"), config.get("query_pre_attn_scalar")
    if kind == MODEL_TYPE:
        return "llama.cpp has no INL models", "Export it as merged, which transformers loads."
    if kind in _LAYERS_OF_27B and scale is not None:
        expected = config.get("head_dim", 256)
        if config["num_hidden_layers"] == _LAYERS_OF_27B[kind]:
            expected = config["hidden_size"] / config["num_attention_heads"]
        if scale != expected:
            return f"its query_pre_attn_scalar is {scale:g}, but llama.cpp computes with {expected:g}", AS_MERGED
    if kind in _SENTENCEPIECE_ONLY and not (folder / "tokenizer.model").is_file():
        advice = "Ask the operator to add the publisher's tokenizer.model to that folder, or export it as merged."
        return "its conversion needs tokenizer.model, which the base model's folder lacks", advice
    return None


def gguf_adapter_refusal(folder: Path) -> tuple[str, str] | None:
    """Returns why an adapter of a base model cannot become a GGUF file that llama.cpp loads beside the base model's,
    and what to do; None if nothing in the base model's folder shows that."""
    kind = str(json.loads((folder / "config.json").read_text("utf-8")).get("model_type"))
    if kind in _TRANSPOSED:
        return f"llama.cpp's converter makes wrong adapters for models of type {kind}", AS_GGUF
    return gguf_refusal(folder)
