"""Models that are loaded: what their configurations and weights do to transformers, and GGUF files that lie."""

import struct
from pathlib import Path
from typing import Any

import numpy
from safetensors.numpy import load, save

from tests.hostile.artifact import ACCEPTED, Artifact, Family, Write, home_of
from tests.hostile.model_checks import check_model
from tests.hostile.model_files import WEIGHTS, Content, change, config, put, spoiled, weights, write_ordinary

_MIB = 1 << 20


def check_loading(folder: Path) -> set[str]:
    """Fetches the model, loads its weights and generates a few tokens, as a training and an evaluation do."""
    if reasons := check_model(folder):
        return reasons
    import torch

    from engine.model.generate import generate
    from engine.model.load import load_base

    model = load_base(folder, dtype=torch.float32, on="cpu")
    (answer,) = generate(model, [[5, 6, 7]], max_new_tokens=4, stop_ids=[2])
    assert len(answer) <= 4
    return set()


def check_gguf(folder: Path) -> set[str]:
    """Converts the GGUF file of a folder."""
    from engine.model.materialise import materialise

    materialise(folder / "model.gguf", home_of(folder) / "converted", weights=False)
    return set()


def _generation(**values: Any) -> Write:
    return spoiled(change("generation_config.json", **values))


_GENERATION: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 100_000},
    "beam-groups": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.0},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "dola": {"dola_layers": "high"},
    "constraints": {"force_words_ids": [[1]]},
    "code": {"custom_generate": "org/code", "trust_remote_code": True},
    "new-tokens": {"max_new_tokens": 1 << 40, "min_new_tokens": 1 << 40},
    "length": {"max_length": 1 << 40, "min_length": 1 << 40},
    "time": {"max_time": -1.0},
    "stop-strings": {"stop_strings": ["a" * _MIB]},
    "cache-offloaded": {"cache_implementation": "offloaded"},
    "cache-static": {"cache_implementation": "static"},
    "cache-off": {"use_cache": False},
    "lookup": {"prompt_lookup_num_tokens": 1 << 30},
    "assistant": {"is_assistant": True, "num_assistant_tokens": 1 << 30},
    "suppressed": {"suppress_tokens": list(range(384))},
    "suppressed-beyond": {"suppress_tokens": [1 << 40]},
    "bad-words": {"bad_words_ids": [[number % 384] for number in range(10_000)]},
    "bias": {"sequence_bias": [[[5], float("inf")]]},
    "forced": {"forced_eos_token_id": 1 << 40, "forced_bos_token_id": 1 << 40},
    "watermark": {"watermarking_config": {"greenlist_ratio": 0.0, "bias": 1e9}},
    "guidance": {"guidance_scale": 1e30},
    "penalty-zero": {"repetition_penalty": 0.0},
    "penalty-text": {"repetition_penalty": "high"},
    "temperature": {"temperature": float("nan"), "do_sample": True},
    "eos-texts": {"eos_token_id": ["a"]},
    "pad-huge": {"pad_token_id": 1 << 40},
    "outputs": {"return_dict_in_generate": True, "output_attentions": True, "output_scores": True},
    "wrong-types": {"num_beams": "four", "do_sample": "perhaps", "top_k": [1]},
}


_UNLOADABLE: dict[str, dict[str, Any]] = {
    "sequences": {"num_return_sequences": 100_000},
    "cache": {"cache_implementation": "org/cache"},
    "compiled": {"compile_config": {"backend": "inductor"}, "cache_implementation": "static"},
    "unknown": {"__class__": "os.system", "a" * 1000: "b"},
}


def _weights(**changed: Any) -> Write:
    """Changes tensors by name; None removes one."""
    tensors = load(weights())
    for name, tensor in changed.items():
        full = name.replace("__", ".")
        tensors.pop(full, None)
        if tensor is not None:
            tensors[full] = tensor
    return spoiled(put(WEIGHTS, save(tensors, {"format": "pt"})))


def _pairs(*values: tuple[str, int, bytes]) -> bytes:
    return b"".join(_text(name) + struct.pack("<I", kind) + value for name, kind, value in values)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _gguf(pairs: bytes = b"", num_tensors: int = 0, num_pairs: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_pairs) + pairs


_ARRAY, _STRING, _U32 = 9, 8, 4
_GGUF: dict[str, Content] = {
    "empty": b"",
    "magic": b"GGUF",
    "no-pairs": _gguf(),
    "version-huge": _gguf(version=(1 << 32) - 1),
    "big-endian": _gguf(version=3 << 24),
    "pairs-2^60": _gguf(num_pairs=1 << 60),
    "tensors-2^60": _gguf(num_tensors=1 << 60),
    "name-of-2^62-bytes": _gguf(struct.pack("<Q", 1 << 62) + b"a", num_pairs=1),
    "text-of-2^62-bytes": _gguf(_pairs(("a", _STRING, struct.pack("<Q", 1 << 62))), num_pairs=1),
    "array-of-2^60": _gguf(_pairs(("a", _ARRAY, struct.pack("<IQ", _U32, 1 << 60))), num_pairs=1),
    "array-of-arrays": _gguf(_pairs(("a", _ARRAY, struct.pack("<IQ", _ARRAY, 1) * 5000)), num_pairs=1),
    "type-unknown": _gguf(_pairs(("a", 99, b"")), num_pairs=1),
    "architecture-unknown": _gguf(_pairs(("general.architecture", _STRING, _text("../../a"))), num_pairs=1),
    "zeros": bytes(10 * _MIB),
    "pickle": b"\x80\x04K\x01.",
}

_FAILED = "not loaded"


def _check_attention(folder: Path) -> set[str]:
    """An operator sees which package is missing: nothing is wrong with the model."""
    try:
        return check_loading(folder)
    except ImportError:
        return {_FAILED}


def _failing_gguf(name: str, content: Content) -> Artifact:
    def check(folder: Path) -> set[str]:
        try:
            return check_gguf(folder)
        except Exception:  # noqa: BLE001 - of a library, which an operator sees
            return {_FAILED}

    return Artifact(f"gguf-{name}", put("model.gguf", content), check, _FAILED)


_CASES = [
    Artifact("model-type-unknown", config(model_type="custom"), check_loading, "NOT_A_MODEL"),
    Artifact("activation", config(hidden_act="os.system"), check_loading, "NOT_A_MODEL"),
    Artifact("rope", config(rope_scaling={"rope_type": "../../a", "factor": 1e30}), check_loading, "NOT_A_MODEL"),
    Artifact("rope-text", config(rope_scaling={"rope_type": "linear", "factor": "2"}), check_loading, "NOT_A_MODEL"),
    Artifact("flash-attention", config(_attn_implementation="flash_attention_2"), _check_attention, _FAILED),
    Artifact("attention-unknown", config(_attn_implementation="os.system"), check_loading, "NOT_A_MODEL"),
    Artifact("vocabulary-larger", config(vocab_size=1 << 20), check_loading, "BAD_WEIGHTS"),
    Artifact(
        "embedding-of-another-shape",
        _weights(model__embed_tokens__weight=numpy.ones((384, 9), numpy.float32)),
        check_loading,
        "BAD_WEIGHTS",
    ),
    Artifact("norm-missing", _weights(model__norm__weight=None), check_loading, "BAD_WEIGHTS"),
    Artifact("dtype", config(dtype="os.system"), check_loading, ACCEPTED),
    *(
        Artifact(f"generation-{name}", _generation(**values), check_loading, "NOT_A_MODEL")
        for name, values in _UNLOADABLE.items()
    ),
    Artifact("tensor-unknown", _weights(model__extra__weight=numpy.ones((3,), numpy.float32)), check_loading, ACCEPTED),
    *(
        Artifact(
            f"weights-{value}",
            _weights(model__norm__weight=numpy.full((8,), float(value), numpy.float32)),
            check_loading,
            "BAD_WEIGHTS",
        )
        for value in ("nan", "inf")
    ),
]
LOADING = Family(
    "loaded models",
    (
        Artifact("ordinary", write_ordinary, check_loading, ACCEPTED),
        *(
            Artifact(f"generation-{name}", _generation(**values), check_loading, ACCEPTED)
            for name, values in _GENERATION.items()
        ),
        *_CASES,
        *(_failing_gguf(name, content) for name, content in _GGUF.items()),
    ),
)
