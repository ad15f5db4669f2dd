"""INL base models: named by size, tokenizer and seed, and made on the machine that needs them."""

import json
from pathlib import Path

import pytest

from engine.catalogue import Catalogue
from engine.errors import JobError
from engine.estimate.known_architectures import known
from engine.inl_sizes import SIZES
from engine.random_reference import RandomReference
from tests.tiny_models import make_tiny_model


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("inl-small", "inl-small"),
        ("inl-3b,seed=0", "inl-3b"),
        ("inl-3b,tokenizer=smollm2-135m,seed=7", "inl-3b,seed=7"),
        ("inl-4b,tokenizer=org/name@main", "inl-4b,tokenizer=org/name@main"),
    ],
)
def test_name_is_read_and_written(text: str, shortest: str) -> None:
    """Two names of one model must share its files, and find each other's checkpoints."""
    assert str(RandomReference.parse(text)) == shortest


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("inl-5b", "MODEL_NOT_FOUND"),
        ("inl-small,seed=-1", "INVALID_MODEL"),
        ("inl-small,seed=1,tokenizer=tiny", "INVALID_MODEL"),
        ("inl-small,tokenizer=tyni", "MODEL_NOT_FOUND"),
        ("inl-small,tokenizer=../tiny", "INVALID_MODEL"),
    ],
)
def test_other_names_are_refused(tmp_path: Path, reference: str, reason: str) -> None:
    with pytest.raises(JobError) as caught:
        Catalogue(tmp_path, {"tiny": tmp_path / "tiny"}).check(reference)
    assert caught.value.reason == reason


def test_all_sizes_are_listed(tmp_path: Path) -> None:
    """A user finds them in `ftf models list`."""
    assert set(SIZES) < {entry.id for entry in Catalogue(tmp_path).list()}


@pytest.mark.long
def test_model_is_made_with_the_tokenizer_of_another(tmp_path: Path) -> None:
    """Every node makes the same weights, which preflight and training compare by their hash."""
    tokenizer = make_tiny_model(tmp_path / "tiny")
    reference = "inl-small,tokenizer=tiny,seed=5"
    found = [Catalogue(tmp_path / node, {"tiny": tokenizer}).fetch(reference) for node in ("a", "b")]
    assert found[0].weights_sha256 == found[1].weights_sha256
    assert {model.id for model in found} == {reference}
    assert found[0].num_parameters == 43_087_872
    assert (found[0].path / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    special = json.loads((tokenizer / "config.json").read_text())["eos_token_id"]
    assert json.loads((found[0].path / "config.json").read_text())["eos_token_id"] == special


def test_configuration_needs_no_weights(tmp_path: Path) -> None:
    """A probe counts tokens and estimates memory for the largest size within seconds."""
    catalogue = Catalogue(tmp_path / "home", {"tiny": make_tiny_model(tmp_path / "tiny")})
    local = catalogue.fetch("inl-4b,tokenizer=tiny", tokenizer_only=True)
    assert not list(local.path.glob("*.safetensors"))
    assert local.context_length == 4096
    assert catalogue.describe("inl-4b,tokenizer=tiny").config["num_iterations"] == 15


@pytest.mark.parametrize("name", SIZES)
def test_listed_size_is_that_of_the_model(name: str) -> None:
    """A user chooses by it."""
    assert SIZES[name].num_parameters() == known(name).num_parameters


def test_wrong_name_says_how_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="after 'inl-small' come `,tokenizer=`") as caught:
        Catalogue(tmp_path).check("inl-small,seed=1,tokenizer=tiny")
    assert caught.value.advice == "Write it like inl-small,tokenizer=smollm2-135m,seed=7."
