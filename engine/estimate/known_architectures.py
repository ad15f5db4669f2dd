"""Architectures that can be estimated without a model's files: the values of their config.json, by name."""

import difflib
from functools import cache
from typing import Any, Final

from engine.errors import JobError, Violation
from engine.estimate.architecture import Architecture
from engine.inl_sizes import SIZES
from engine.random_reference import RANDOM

_KEYS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "intermediate_size", "vocab_size", "tie_word_embeddings", "max_position_embeddings")  # fmt: skip


def _config(kind: str, *sizes: int, **more: Any) -> dict[str, Any]:
    return {"model_type": kind, **dict(zip(_KEYS, sizes, strict=True)), **more}


# layers, hidden, heads, key/value heads, head size, feed-forward, vocabulary, tied, context
CONFIGS: Final[dict[str, dict[str, Any]]] = {
    "llama-2-7b": _config("llama", 32, 4096, 32, 32, 128, 11008, 32000, False, 4096),
    "llama-2-13b": _config("llama", 40, 5120, 40, 40, 128, 13824, 32000, False, 4096),
    "llama-3.2-1b": _config("llama", 16, 2048, 32, 8, 64, 8192, 128256, True, 131072),
    "llama-3.2-3b": _config("llama", 28, 3072, 24, 8, 128, 8192, 128256, True, 131072),
    "llama-3.1-8b": _config("llama", 32, 4096, 32, 8, 128, 14336, 128256, False, 131072),
    "llama-3.1-70b": _config("llama", 80, 8192, 64, 8, 128, 28672, 128256, False, 131072),
    "qwen2.5-0.5b": _config("qwen2", 24, 896, 14, 2, 64, 4864, 151936, True, 32768),
    "qwen2.5-1.5b": _config("qwen2", 28, 1536, 12, 2, 128, 8960, 151936, True, 32768),
    "qwen2.5-3b": _config("qwen2", 36, 2048, 16, 2, 128, 11008, 151936, True, 32768),
    "qwen2.5-7b": _config("qwen2", 28, 3584, 28, 4, 128, 18944, 152064, False, 32768),
    "qwen2.5-14b": _config("qwen2", 48, 5120, 40, 8, 128, 13824, 152064, False, 32768),
    "qwen2.5-32b": _config("qwen2", 64, 5120, 40, 8, 128, 27648, 152064, False, 32768),
    "qwen2.5-72b": _config("qwen2", 80, 8192, 64, 8, 128, 29568, 152064, False, 32768),
    "qwen3-0.6b": _config("qwen3", 28, 1024, 16, 8, 128, 3072, 151936, True, 40960),
    "qwen3-1.7b": _config("qwen3", 28, 2048, 16, 8, 128, 6144, 151936, True, 40960),
    "qwen3-4b": _config("qwen3", 36, 2560, 32, 8, 128, 9728, 151936, True, 40960),
    "qwen3-8b": _config("qwen3", 36, 4096, 32, 8, 128, 12288, 151936, False, 40960),
    "qwen3-14b": _config("qwen3", 40, 5120, 40, 8, 128, 17408, 151936, False, 40960),
    "qwen3-32b": _config("qwen3", 64, 5120, 64, 8, 128, 25600, 151936, False, 40960),
    "qwen3-30b-a3b": _config(
        "qwen3_moe", 48, 2048, 32, 4, 128, 6144, 151936, False, 40960,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
    "gemma-2-2b": _config("gemma2", 26, 2304, 8, 4, 256, 9216, 256000, True, 8192, attn_logit_softcapping=50.0),
    "gemma-2-9b": _config("gemma2", 42, 3584, 16, 8, 256, 14336, 256000, True, 8192, attn_logit_softcapping=50.0),
    "gemma-2-27b": _config("gemma2", 46, 4608, 32, 16, 128, 36864, 256000, True, 8192, attn_logit_softcapping=50.0),
    "gemma-3-270m": _config("gemma3_text", 18, 640, 4, 1, 256, 2048, 262144, True, 32768),
    "gemma-3-1b": _config("gemma3_text", 26, 1152, 4, 1, 256, 6912, 262144, True, 32768),
    "gemma-3-4b": _config("gemma3_text", 34, 2560, 8, 4, 256, 10240, 262208, True, 131072),
    "gemma-3-12b": _config("gemma3_text", 48, 3840, 16, 8, 256, 15360, 262208, True, 131072),
    "gemma-3-27b": _config("gemma3_text", 62, 5376, 32, 16, 128, 21504, 262208, True, 131072),
    "mistral-7b": _config("mistral", 32, 4096, 32, 8, 128, 14336, 32768, False, 32768),
    "mixtral-8x7b": _config(
        "mixtral", 32, 4096, 32, 8, 128, 14336, 32000, False, 32768, num_local_experts=8, num_experts_per_tok=2
    ),
    "phi-3-mini": _config("phi3", 32, 3072, 32, 32, 96, 8192, 32064, False, 4096),
    "phi-3-medium": _config("phi3", 40, 5120, 40, 10, 128, 17920, 32064, False, 4096),
    "phi-4": _config("phi3", 40, 5120, 40, 10, 128, 17920, 100352, False, 16384),
    "phi-4-mini": _config("phi3", 32, 3072, 24, 8, 128, 8192, 200064, True, 131072),
    "smollm2-135m": _config("llama", 30, 576, 9, 3, 64, 1536, 49152, True, 8192),
    "smollm2-360m": _config("llama", 32, 960, 15, 5, 64, 2560, 49152, True, 8192),
    "smollm2-1.7b": _config("llama", 24, 2048, 32, 32, 64, 8192, 49152, True, 8192),
    **{name: size.config() for name, size in SIZES.items()},
}  # fmt: skip

_SUFFIXES = ("-instruct", "-it", "-chat", "-base", "-hf", "-pt")


@cache
def known(name: str) -> Architecture:
    """Returns the architecture of this name: a key of `CONFIGS`, or a Hugging Face id that ends in one, possibly
    followed by a suffix such as -Instruct.

    Raises JobError("MODEL_NOT_FOUND") with the nearest names for any other name.
    """
    found = find_known(name)
    if found is not None:
        return found
    close = difflib.get_close_matches(_short(name), CONFIGS, n=3, cutoff=0.4)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known architectures: {', '.join(CONFIGS)}."
    message = f"Unknown architecture {name[:80]!r}. {hint}"
    raise JobError("MODEL_NOT_FOUND", message, hint, [Violation("base_model", message)])


def find_known(name: str) -> Architecture | None:
    """Returns the same as `known`, or None for an unknown name."""
    config = CONFIGS.get(_short(name))
    return Architecture.from_config(config) if config else None


def _short(name: str) -> str:
    # Of a model with random weights: the tokenizer and the seed follow.
    name = name.removeprefix(RANDOM).partition(",")[0]
    short = name.rpartition("/")[2].partition("@")[0].lower().removeprefix("meta-")
    while ending := next((suffix for suffix in _SUFFIXES if short.endswith(suffix)), ""):
        short = short.removesuffix(ending)
    return short
