"""The built-in model's folder appears atomically, and has the same description with and without weights."""

import json
from pathlib import Path

import gguf
import numpy
import pytest

from engine.catalogue import Catalogue
from engine.estimate.architecture import Architecture
from engine.estimate.known_architectures import known
from engine.model.materialise import materialise, packaged_gguf
from engine.model_folder import tensor_shapes
from engine.model_names import BUILT_IN


def make_tiny_gguf(path: Path) -> Path:
    """A Llama of one layer with a tokenizer of single characters."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    tokens = ["<|endoftext|>", *map(chr, range(33, 127)), "ab"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * (len(tokens) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    random = numpy.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {"blk.0.attn_q": (32, 32), "blk.0.attn_output": (32, 32)}
    shapes |= {"blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32), "blk.0.ffn_down": (32, 64)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.standard_normal(shape, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_broken_file_leaves_nothing_behind(tmp_path: Path) -> None:
    """An incomplete model that looks complete would fail all later jobs."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF is not in here")
    with pytest.raises(Exception):  # noqa: B017 - whatever the reader of the format raises
        materialise(gguf, tmp_path / "models" / "tiny")
    assert list((tmp_path / "models").iterdir()) == []


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    """A second process would otherwise replace weights that a training is reading."""
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text("{}")
    materialise(packaged_gguf(), tmp_path / "tiny")
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["config.json"]


def test_without_weights_the_description_is_the_same(tmp_path: Path) -> None:
    """Token shards are keyed by the tokenizer's files: with different ones after a dry run all shards would be made
    again, and with different shapes the estimate would be that of another model."""
    packaged, whole, light = make_tiny_gguf(tmp_path / "tiny.gguf"), tmp_path / "whole", tmp_path / "light"
    materialise(packaged, whole)
    materialise(packaged, light, weights=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (light / name).read_bytes() == (whole / name).read_bytes()
    assert not list(light.glob("*.safetensors"))
    shapes = {name: tuple(shape) for name, shape in json.loads((light / "shapes.json").read_text()).items()}
    assert shapes == tensor_shapes(whole)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (light, whole)]
    assert configs[0] == configs[1]


@pytest.mark.long
def test_the_built_in_model_is_described_without_its_weights(tmp_path: Path) -> None:
    """Otherwise the first dry run would unpack half a gigabyte, which takes more than a minute."""
    catalogue = Catalogue(tmp_path)
    local, described = catalogue.fetch(BUILT_IN, tokenizer_only=True), catalogue.describe(BUILT_IN)
    architecture = Architecture.of_tensors(described.config, described.shapes)
    assert (local.context_length, architecture.num_parameters) == (8192, known(BUILT_IN).num_parameters)
    assert described.missing_bytes == 4 * architecture.num_parameters
    assert not list(tmp_path.rglob("*.safetensors"))
