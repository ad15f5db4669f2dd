"""Models with random weights in the shape of another one: named by shape, tokenizer and seed."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from engine.catalogue import Catalogue
from engine.errors import JobError, LimitExceeded
from engine.estimate.architecture import Architecture
from engine.random_reference import RandomReference
from tests.tiny_models import make_tiny_llama_tokenizer, make_tiny_model

LONG = pytest.mark.long


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def shape(tiny: Path, tmp_path: Path) -> Callable[[Mapping[str, Any]], Path]:
    """Makes a model's folder without its weights, with other values in config.json."""

    def make(changed: Mapping[str, Any]) -> Path:
        folder = tmp_path / "shape"
        folder.mkdir()
        for file in tiny.iterdir():
            if file.name != "model.safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        config = json.loads((tiny / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changed}))
        return folder

    return make


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("random:tiny", "random:tiny"),
        ("random:inl-small,seed=3", "inl-small,seed=3"),
        ("random:org/name@main,tokenizer=org/name@main", "random:org/name@main"),
        ("random:org/name,tokenizer=org/other,seed=07", "random:org/name,tokenizer=org/other,seed=7"),
        ("inl-3b,tokenizer=corpus,vocab_size=32000", "inl-3b,tokenizer=corpus"),
        ("random:tiny,tokenizer=corpus,vocab_size=257,seed=1", "random:tiny,tokenizer=corpus,vocab_size=257,seed=1"),
    ],
)
def test_name_is_read_and_written(text: str, shortest: str) -> None:
    """Two names of one model must share its files, and find each other's checkpoints."""
    assert str(RandomReference.parse(text)) == shortest


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("random:", "INVALID_MODEL"),
        ("random:tyni", "MODEL_NOT_FOUND"),
        ("random:../tiny", "INVALID_MODEL"),
        ("random:ft:ftjob_1", "INVALID_MODEL"),
        ("random:random:tiny", "INVALID_MODEL"),
        ("random:tiny,seed=x", "INVALID_MODEL"),
        ("random:tiny,vocab_size=300", "INVALID_MODEL"),
        ("random:tiny,tokenizer=corpus,vocab_size=256", "INVALID_MODEL"),
        ("random:tiny,tokenizer=corpus,vocab_size=1000001", "INVALID_MODEL"),
        # No job, so no corpus.
        ("random:tiny,tokenizer=corpus", "INVALID_MODEL"),
        (f"random:tiny,tokenizer=corpus:{'0' * 64}", "INVALID_MODEL"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, reference: str, reason: str) -> None:
    with pytest.raises(JobError) as caught:
        Catalogue(tmp_path, {"tiny": tmp_path / "tiny"}).check(reference)
    assert caught.value.reason == reason


def test_it_is_listed(tmp_path: Path) -> None:
    """A user finds the way to write it in `ftf models list`."""
    catalogue = Catalogue(tmp_path)
    (listed,) = [entry.id for entry in catalogue.list() if entry.id.startswith("random:")]
    catalogue.check(listed)


@pytest.mark.long
def test_it_has_the_shape_and_other_weights(tmp_path: Path, tiny: Path) -> None:
    """Every node makes the same weights, which preflight and training compare by their hash."""
    nodes = [Catalogue(tmp_path / node, {"tiny": tiny}) for node in ("a", "b")]
    found = [node.fetch("random:tiny,seed=5") for node in nodes]
    assert found[0].weights_sha256 == found[1].weights_sha256 != nodes[0].fetch("tiny").weights_sha256
    assert {(model.id, model.revision) for model in found} == {("random:tiny,seed=5", "random")}
    assert Architecture.of_folder(found[0].path) == Architecture.of_folder(tiny)
    assert (found[0].path / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    assert found[0].architecture == "LlamaForCausalLM"
    assert nodes[0].fetch("random:tiny").weights_sha256 != found[0].weights_sha256


def test_shapes_are_known_before_the_weights(tmp_path: Path, tiny: Path) -> None:
    """A preflight counts its parameters before anything large is made."""
    catalogue = Catalogue(tmp_path, {"tiny": tiny})
    described = catalogue.describe("random:tiny")
    local = catalogue.fetch("random:tiny", tokenizer_only=True)
    assert not list(local.path.glob("*.safetensors"))
    expected = Architecture.of_folder(tiny)
    assert Architecture.of_tensors(described.config, described.shapes) == expected
    assert described.missing_bytes == 4 * expected.num_parameters
    assert Architecture.of_folder(local.path) == expected


@pytest.mark.long
def test_another_tokenizer_decides_the_vocabulary(tmp_path: Path, tiny: Path) -> None:
    """The special tokens of the shape would be those of other texts."""
    other = make_tiny_llama_tokenizer(tmp_path / "other")
    (other / "config.json").write_text((tiny / "config.json").read_text())
    catalogue = Catalogue(tmp_path / "home", {"tiny": tiny, "other": other})
    local = catalogue.fetch("random:tiny,tokenizer=other")
    config = json.loads((local.path / "config.json").read_text())
    vocabulary = json.loads((other / "tokenizer.json").read_text())["model"]["vocab"]
    assert config["vocab_size"] == -(-len(vocabulary) // 64) * 64
    assert (config["bos_token_id"], config["eos_token_id"]) == (vocabulary["<|im_start|>"], vocabulary["<|im_end|>"])
    assert config["pad_token_id"] is None
    assert config["hidden_size"] == 64


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "QUANTISED_WEIGHTS"),
        ({"auto_map": {"AutoModelForCausalLM": "model.Own"}}, "REMOTE_CODE_REFUSED"),
        ({"is_encoder_decoder": True}, "NOT_CAUSAL_LM"),
        ({"architectures": ["LlamaModel"]}, "NOT_CAUSAL_LM"),
        pytest.param({"model_type": "bert", "architectures": None, "hidden_size": "wide"}, "NOT_A_MODEL", marks=LONG),
        pytest.param({"model_type": "own"}, "NOT_A_MODEL", marks=LONG),
        pytest.param({"model_type": "t5", "architectures": None}, "NOT_CAUSAL_LM", marks=LONG),
        ({"vocab_size": 100}, "NOT_A_MODEL"),
    ],
)
def test_shape_that_cannot_become_a_model_is_refused(
    tmp_path: Path, shape: Callable[[Mapping[str, Any]], Path], changed: Mapping[str, Any], reason: str
) -> None:
    """The user reads why, before a job is queued."""
    catalogue = Catalogue(tmp_path / "home", {"shape": shape(changed)})
    with pytest.raises(JobError) as caught:
        catalogue.describe("random:shape")
    assert caught.value.reason == reason


@pytest.mark.long
def test_large_model_is_refused_before_it_is_made(tmp_path: Path, tiny: Path) -> None:
    """A name is short; the weights would fill the machine."""
    catalogue = Catalogue(tmp_path, {"tiny": tiny}, max_model_bytes=100_000)
    with pytest.raises(LimitExceeded) as caught:
        catalogue.fetch("random:tiny")
    assert caught.value.reason == "MODEL_TOO_LARGE"
    assert catalogue.describe("random:tiny").missing_bytes > 100_000


def test_wrong_name_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=re.escape("come `,tokenizer=` and a base model or `corpus`")) as caught:
        Catalogue(tmp_path).check("random:org/name,seed=1,tokenizer=tiny")
    assert caught.value.advice == "Write it like random:org/name,tokenizer=smollm2-135m,seed=7."
