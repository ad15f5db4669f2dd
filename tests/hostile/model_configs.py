"""The JSON files of models: code of others, absurd sizes, and JSON that exhausts its reader."""

import json
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Family, Write
from tests.hostile.model_checks import check_model
from tests.hostile.model_files import CONFIG, Content, change, config, put, remove, spoiled, write_ordinary

_CODE, _NO_MODEL = "REMOTE_CODE_REFUSED", "NOT_A_MODEL"
_QUANTISED = "QUANTISED_WEIGHTS"
_MIB = 1 << 20
_FILES = ("config.json", "tokenizer_config.json", "generation_config.json")
_MAP = {"AutoModelForCausalLM": "modeling.Model"}


def _raw(text: Content, name: str = "config.json") -> Write:
    return spoiled(put(name, text))


def _nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


_REMOTE = [
    *(Artifact(f"{file}-auto_map", spoiled(change(file, auto_map=_MAP)), check_model, _CODE) for file in _FILES),
    *(
        Artifact(f"auto_map-{kind}", config(auto_map=value), check_model, _CODE)
        for kind, value in {
            "repository": {"AutoConfig": "org/code--configuration.Config"},
            "list": ["tokenization.Tokenizer", None],
            "text": "modeling.Model",
            "number": 1,
        }.items()
    ),
    Artifact("auto_map-empty", config(auto_map={}), check_model, ACCEPTED),
    Artifact("trust_remote_code", config(trust_remote_code=True), check_model, ACCEPTED),
    *(
        Artifact(f"{file}-kernel", spoiled(change(file, attn_implementation="org/kernel")), check_model, _CODE)
        for file in _FILES
    ),
    *(
        Artifact(f"kernel-{number}", config(**values), check_model, _CODE)
        for number, values in enumerate(
            [
                {"_attn_implementation": "org/kernel"},
                {"attn_implementation": "org/kernel@main:function"},
                {"attn_implementation": {"": "org/kernel"}},
                {"attn_implementation": {"text_config": {"a": ["org/kernel"]}}},
                {"_attn_implementation_internal": "https://example.com/kernel"},
                {"text_config": {"_attn_implementation": "org/kernel"}},
                {"vision_config": {"encoder": {"attn_implementation": "paged|org/kernel"}}},
                {"layers": [{"attn_implementation": "../outside"}]},
                {"my_attn_implementation_of_any_name": "a/b"},
            ]
        )
    ),
    *(
        Artifact(f"quantization-{number}", config(quantization_config=values), check_model, _QUANTISED)
        for number, values in enumerate(
            [
                {"quant_method": "mxfp4", "kernel": "org/kernel"},
                {"quant_method": "a" * 100_000},
                {"quant_method": {"a": "b"}},
                {"load_in_4bit": True},
                ["bitsandbytes"],
                "bitsandbytes",
                1,
            ]
        )
    ),
    Artifact("weights-of-another-folder", config(transformers_weights="../outside/a.safetensors"), check_model, "BAD_WEIGHTS"),
    Artifact("weights-of-a-subfolder", config(transformers_weights="sub/model.safetensors"), check_model, "BAD_WEIGHTS"),
    Artifact("weights-list", config(transformers_weights=["model.safetensors"]), check_model, "BAD_WEIGHTS"),
    Artifact("weights-named", config(transformers_weights="model.safetensors"), check_model, ACCEPTED),
    *(
        Artifact(f"tokenizer-file-{kind}", spoiled(change("tokenizer_config.json", fast_tokenizer_files=files)), check_model, _NO_MODEL)
        for kind, files in {
            "outside": ["../outside/tokenizer.4.0.json"],
            "versioned": ["tokenizer.4.0.json"],
            "text": "tokenizer.4.0.json",
            "number": 5,
        }.items()
    ),
]  # fmt: skip


def _size(name: str, value: Any, expected: str) -> Artifact:
    said = json.dumps(value).replace(" ", "")
    said = said if len(said) < 40 else f"{len(said)}-digits"
    return Artifact(f"{name}={said}", config(**{name: value}), check_model, expected)


_HUGE = (10**9, 1 << 62, 10**1000, -1, -(10**18))
_SIZES = [
    *(
        _size(name, value, _NO_MODEL)
        for name in ("num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads")
        for value in (*_HUGE, 0)
    ),
    *(
        _size(name, value, _NO_MODEL)
        for name in ("intermediate_size", "num_key_value_heads", "head_dim", "num_experts", "max_position_embeddings")
        for value in (1 << 62, -1)
    ),
    *(
        Artifact(f"nested-layers-{kind}", config(**{kind: {"num_hidden_layers": 10**9}}), check_model, _NO_MODEL)
        for kind in ("text_config", "vision_config", "thinker_config")
    ),
    *(
        Artifact(f"architectures-{number}", config(architectures=value), check_model, expected)
        for number, (value, expected) in enumerate(
            [
                (5, _NO_MODEL),
                ("LlamaForCausalLM", _NO_MODEL),
                ({"LlamaForCausalLM": 1}, _NO_MODEL),
                ([5], _NO_MODEL),
                ([["LlamaForCausalLM"]], _NO_MODEL),
                (["BertModel"], "NOT_CAUSAL_LM"),
                (["a" * _MIB], "NOT_CAUSAL_LM"),
                (["BertModel"] * 100_000, "NOT_CAUSAL_LM"),
                ([], ACCEPTED),
                (None, ACCEPTED),
            ]
        )
    ),
    Artifact("encoder-decoder", config(is_encoder_decoder=True), check_model, "NOT_CAUSAL_LM"),
    _size("num_hidden_layers", None, "UNKNOWN_ARCHITECTURE"),
    _size("hidden_size", "8", "UNKNOWN_ARCHITECTURE"),
    _size("vocab_size", 1e300, "UNKNOWN_ARCHITECTURE"),
    _size("hidden_size", [8, 8], "UNKNOWN_ARCHITECTURE"),
    _size("num_hidden_layers", True, "UNKNOWN_ARCHITECTURE"),
    _size("max_position_embeddings", "many", ACCEPTED),
    _size("model_type", ["llama"], ACCEPTED),
    _size("model_type", {"a": {"b": "c"}}, ACCEPTED),
    _size("text_config", 5, ACCEPTED),
    _size("text_config", ["a"], ACCEPTED),
    _size("tie_word_embeddings", "maybe", ACCEPTED),
]
_JSON = [
    *(
        Artifact(f"json-{kind}", _raw(text), check_model, _NO_MODEL)
        for kind, text in {
            "empty": "",
            "cut": '{"architectures": ["Llama',
            "list": "[]",
            "number": "1",
            "null": "null",
            "text": '"a"',
            "two": "{}{}",
            "comment": "{} // comment",
            "single-quotes": "{'a': 1}",
            "python": "{'a': __import__('os').system('true')}",
            "not-utf8": b"\xff\xfe{}",
            "utf16": "{}".encode("utf-16"),
            "bom": b"\xef\xbb\xbf{}",
            "nul": b"\0" * 1000,
            "deep": _nested(200_000),
            "deep-lists": '{"a": ' + "[" * 200_000,
            "deep-enough-to-parse": _nested(900),
            "deeper-than-any-model": _nested(110),
            "number-of-a-million-digits": '{"a": ' + "9" * _MIB + "}",
            "hundred-megabytes": lambda: b'{"a": "' + b"a" * (100 * _MIB) + b'"}',
            "million-objects": lambda: '{"a": [' + "{}," * 2_000_000 + "{}]}",
            "million-lists": lambda: '{"a": [' + "[]," * 8_000_000 + "[]]}",
            "yaml": "architectures:\n- LlamaForCausalLM\n",
            "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00",
        }.items()
    ),
    Artifact("json-two-keys", _raw('{"auto_map": {}, "auto_map": {"A": "b.C"}}'), check_model, _CODE),
    Artifact("json-escaped-key", _raw('{"auto\\u005fmap": {"A": "b.C"}}'), check_model, _CODE),
    Artifact("json-surrogate", config(name_or_path="\ud800"), check_model, ACCEPTED),
    Artifact("json-nan", config(rope_theta=float("nan"), initializer_range=float("inf")), check_model, ACCEPTED),
    Artifact("json-exponent", spoiled(put("generation_config.json", '{"a": 1e999999, "b": -1e-999999}')), check_model, ACCEPTED),
    Artifact("json-many-numbers", spoiled(put("generation_config.json", lambda: '{"a": [' + "1," * 8_000_000 + "1]}")), check_model, ACCEPTED, seconds=4, mib=512),
    Artifact("json-many-texts", spoiled(put("generation_config.json", lambda: '{"a": [' + '"ab",' * 3_000_000 + '""]}')), check_model, ACCEPTED, seconds=4, mib=768),
    Artifact("json-many-keys", spoiled(put("generation_config.json", lambda: json.dumps(dict.fromkeys(map(str, range(1_000_000)), 1)))), check_model, ACCEPTED, seconds=4, mib=768),
    Artifact("json-long-key", config(**{"attn_implementation" * 50_000: "a/b"}), check_model, _CODE),
    *(
        Artifact(f"{file}-{kind}", _raw(text, file), check_model, _NO_MODEL)
        for file in _FILES[1:]
        for kind, text in {
            "cut": "{",
            "list": "[1]",
            "deep": _nested(100_000),
            "hundred-megabytes": lambda: b" " * (100 * _MIB),
        }.items()
    ),
    Artifact("config-only-braces", spoiled(remove("tokenizer.json"), put("config.json", "{}")), check_model, "UNKNOWN_ARCHITECTURE"),
    Artifact("config-many-settings", config(**{f"setting_{number}": CONFIG for number in range(20_000)}), check_model, ACCEPTED, seconds=3),
]  # fmt: skip

MODEL_CONFIGS = Family(
    "model configurations",
    (Artifact("ordinary", write_ordinary, check_model, ACCEPTED), *_REMOTE, *_SIZES, *_JSON),
)
