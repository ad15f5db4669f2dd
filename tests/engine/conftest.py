"""A model's folder that has everything but useful weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from tests.tiny_models import make_tiny_tokenizer


@pytest.fixture
def model_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(**config: object) -> Path:
        folder = make_tiny_tokenizer(tmp_path / "tiny")
        values = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 256, **config}
        (folder / "config.json").write_text(json.dumps(values))
        save_file({"a.weight": numpy.zeros((3, 5), numpy.float32)}, str(folder / "model-1.safetensors"))
        save_file({"b.weight": numpy.ones((7,), numpy.float16)}, str(folder / "model-2.safetensors"))
        index = {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        return folder

    return make
