"""Models with random weights: any shape, reproducible, and accepted like every other base model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from engine import inl_sizes
from engine.catalogue import Catalogue
from engine.config.job import Lora
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.inl.model import InlForCausalLM
from engine.inl_sizes import InlSize
from engine.model import load
from engine.model.adapter import attach_lora
from engine.model.merge import merge
from engine.model.random_weights import write_random_weights
from engine.model_folder import tensor_shapes
from engine.tokenizer_files import copy_tokenizer
from tests.tiny_models import make_tiny_model, make_tiny_tokenizer

_INL = {**InlSize(hidden=32, layers=2, iterations=3, context=128).config(384), "dropout": 0.0}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer") / "chat")


def _write_random_model(config: Mapping[str, Any], folder: Path, *, seed: int, tokenizer: Path) -> None:
    folder.mkdir()
    special = copy_tokenizer(tokenizer, folder)
    (folder / "config.json").write_text(json.dumps({**config, **special}))
    write_random_weights(folder, seed)


def test_the_seed_decides_the_weights(tmp_path: Path, tokenizer: Path) -> None:
    """Two workers of a job, or an attempt after a crash, must begin with the same model."""
    state = torch.get_rng_state()
    for name, seed in (("first", 3), ("again", 3), ("other", 4)):
        _write_random_model(_INL, tmp_path / name, seed=seed, tokenizer=tokenizer)
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (tmp_path / name / "model.safetensors" for name in ("first", "again", "other"))
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_it_is_a_base_model_like_others(tmp_path: Path, tokenizer: Path) -> None:
    """The catalogue accepts it, the estimate counts it, and it is loaded with the tokenizer's special tokens."""
    folder = tmp_path / "inl-tiny"
    _write_random_model(_INL, folder, seed=0, tokenizer=tokenizer)
    found = Catalogue(tmp_path / "home", {"inl-tiny": folder}).fetch("inl-tiny")
    model = load.load_base(found.path, dtype=torch.float32, on="cpu")
    assert type(model) is InlForCausalLM
    assert found.architecture == "InlForCausalLM"
    assert found.context_length == 128
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert found.num_parameters == counted == Architecture.of_folder(folder).num_parameters
    # Before the weights are made, a preflight checks names of modules by these.
    assert inl_sizes.tensor_shapes(_INL) == tensor_shapes(folder)
    vocabulary = json.loads((tokenizer / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    assert model.config.eos_token_id == ids["<|im_end|>"]
    assert model.config.pad_token_id == ids["<|endoftext|>"]


def test_any_configuration_is_a_shape(tmp_path: Path, tokenizer: Path) -> None:
    """The weights beside it are not read."""
    original = make_tiny_model(tmp_path / "original")
    config = json.loads((original / "config.json").read_text())
    _write_random_model(config, tmp_path / "new", seed=1, tokenizer=tokenizer)
    model = load.load_base(tmp_path / "new", dtype=torch.float32, on="cpu")
    assert type(model) is LlamaForCausalLM
    before = load.load_base(original, dtype=torch.float32, on="cpu")
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)


def test_what_cannot_become_a_model_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    for number, (config, reason) in enumerate(
        (
            ({**_INL, "vocab_size": 100}, "NOT_A_MODEL"),
            ({**_INL, "model_type": "inl-llm"}, "NOT_A_MODEL"),
            ({**_INL, "hidden_size": "wide"}, "NOT_A_MODEL"),
            ({**_INL, "auto_map": {"AutoModelForCausalLM": "model.Inl"}}, "REMOTE_CODE_REFUSED"),
        )
    ):
        with pytest.raises(JobError) as caught:
            _write_random_model(config, tmp_path / str(number), seed=0, tokenizer=tokenizer)
        assert caught.value.reason == reason
    with pytest.raises(JobError) as caught:
        _write_random_model(_INL, tmp_path / "model", seed=0, tokenizer=tmp_path)
    assert caught.value.reason == "NO_TOKENIZER"


def test_an_adapter_of_it_is_merged(tmp_path: Path, tokenizer: Path) -> None:
    """All its linear layers have standard weights, so the export as one model works."""
    folder = tmp_path / "base"
    _write_random_model(_INL, folder, seed=0, tokenizer=tokenizer)
    base = load.load_base(folder, dtype=torch.float32, on="cpu")
    adapted = attach_lora(
        base, Lora(r=2), model_dir=folder, base_id="inl", revision="", quantised=False, gradient_checkpointing=False
    )
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge(folder, tmp_path / "adapter", tmp_path / "merged")
    merged = load.load_base(tmp_path / "merged", dtype=torch.float32, on="cpu")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(merged(ids).logits, adapted.eval()(input_ids=ids).logits, rtol=0, atol=1e-4)
