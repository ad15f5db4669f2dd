"""Datasets on the hub: references, the choice of file and commit, and refusals before any download."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.config.hub_reference import HubReference
from engine.config.job import job_config
from engine.errors import JobError, SystemFailure
from engine.hub import anonymous
from engine.hub_datasets import HubDatasets
from tests.fakes.hub import Hub

OLD, NEW = "a" * 40, "b" * 40
ROWS = b'{"question": "What?", "answer": "That."}\n'


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    files = {
        "one": ("README.md", "dataset_infos.json", "loader.py", "data/train.jsonl"),
        "many": ("main/train.parquet", "main/test.parquet", "loader.py"),
        "script": ("README.md", "loader.py"),
        "parts": ("README.md", "text/b.txt", "text/a.txt", "text/c/d.txt", "loader.py"),
        "splits": ("data/train-1.jsonl", "data/test-0.jsonl", "data/train-0.jsonl", "data/extra.jsonl"),
        "tests": ("test.jsonl", "validation.jsonl"),
        "formats": ("train.jsonl", "train.csv"),
        "large": tuple(f"part-{number}.txt" for number in range(101)),
    }
    datasets: dict[str, dict[str, Path]] = {}
    for name, paths in files.items():
        for commit in (OLD, NEW):
            folder = tmp_path / "hub" / name / commit
            for path in paths:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(ROWS * (1 if commit == OLD else 2))
            datasets.setdefault(f"org/{name}", {})[commit] = folder
    with Hub(tmp_path, datasets).asked() as hub:
        yield hub


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://org/name", ("org/name", "", "")),
        ("hf://org/na.me@v1.0", ("org/na.me", "v1.0", "")),
        ("hf://org/name/data/train 1.jsonl", ("org/name", "", "data/train 1.jsonl")),
        ("hf://org/name@main/train.csv.gz", ("org/name", "main", "train.csv.gz")),
        ("hf://org/name@refs/convert/parquet/a/0.parquet", ("org/name", "refs/convert/parquet", "a/0.parquet")),
    ],
)  # fmt: skip
def test_hub_dataset_references_are_parsed(text: str, parts: tuple[str, str, str]) -> None:
    reference = HubReference.parse(text)
    assert (reference.id, reference.revision, reference.path) == parts
    assert str(reference) == text


@pytest.mark.parametrize(
    "text",
    [
        "hf://", "hf://name", "hf://org/name@", "hf://org/name/", "hf://org/name//x.csv", "hf://org/name/../x.csv",
        "hf://../name", "hf://org/name@a\nb", "hf://org/name/a\\b.csv", "hf://org/name?x=1",
        "hf://org/name/" + "a" * 1024,
    ],
)  # fmt: skip
def test_an_invalid_reference_is_refused_before_a_job_exists(text: str) -> None:
    """The error names the field and the expected form, before anything is uploaded."""
    with pytest.raises(JobError) as caught:
        job_config({"base_model": "tiny", "phases": [{"training_data": [{"dataset": text}], "num_epochs": 1.0}]})
    assert caught.value.reason == "INVALID_CONFIG"
    assert caught.value.violations[0].field == "spec.phases[0].training_data[0].dataset"
    assert "hf://owner/name@revision" in caught.value.violations[0].description


def test_only_data_file_is_pinned_to_newest_commit(hub: Hub, tmp_path: Path) -> None:
    """Descriptions and scripts are not data files; the returned reference names the same content for ever."""
    found = HubDatasets(anonymous, 1 << 20).find("hf://org/one", "f")
    assert found.reference == f"hf://org/one@{NEW}/data/train.jsonl"
    assert (found.size_bytes, hub.sent) == (2 * len(ROWS), {})
    old = HubDatasets(anonymous, 1 << 20)
    brought = old.fetch(old.find(f"hf://org/one@{OLD}", "f"), tmp_path / "here")
    assert (brought.path, brought.path.read_bytes()) == (tmp_path / "here" / "train.jsonl", ROWS)
    assert brought.sha256 == hashlib.sha256(ROWS).hexdigest()
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == ["train.jsonl"]
    assert not list(tmp_path.glob(".here*"))


@pytest.mark.parametrize(
    ("asked", "paths", "left_out"),
    [
        ("hf://org/one", ["data/train.jsonl"], 0),
        ("hf://org/parts", ["text/a.txt", "text/b.txt", "text/c/d.txt"], 0),
        ("hf://org/parts/text/c", ["text/c/d.txt"], 0),
        ("hf://org/parts/text/b.txt", ["text/b.txt"], 0),
        ("hf://org/splits", ["data/train-0.jsonl", "data/train-1.jsonl"], 2),
        ("hf://org/many", ["main/train.parquet"], 1),
    ],
)
def test_reference_stands_for_the_files_of_its_split(hub: Hub, asked: str, paths: list[str], left_out: int) -> None:
    """Rows of a test split would otherwise be trained on, and parts of a corpus left out."""
    found = HubDatasets(anonymous, 1 << 20).find_all(asked, "f", training=True)
    name = "/".join(asked.split("/")[:4])
    assert [file.reference for file in found] == [f"{name}@{NEW}/{path}" for path in paths]
    assert {file.num_left_out for file in found} == {left_out}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("hf://org/tests", "not to train on, by their names"),
        ("hf://org/formats", "of several formats (csv, jsonl)"),
        ("hf://org/large", "101 data files; the limit is 100"),
    ],
)
def test_files_of_which_not_all_can_be_trained_on_are_refused(hub: Hub, asked: str, told: str) -> None:
    with pytest.raises(JobError) as caught:
        HubDatasets(anonymous, 1 << 20).find_all(asked, "f", training=True)
    assert caught.value.reason == "SEVERAL_FILES"
    assert told in caught.value.message
    assert f"{asked}/" in caught.value.advice


def test_dataset_whose_card_declares_subsets_is_refused(hub: Hub) -> None:
    """Its files may be the same text in several languages, or several versions of it."""
    hub.cards["org/parts"] = {"configs": [{"config_name": "en"}, {"config_name": "de"}]}
    with pytest.raises(JobError) as caught:
        HubDatasets(anonymous, 1 << 20).find_all("hf://org/parts", "f", training=True)
    assert "its card declares subsets" in caught.value.message
    assert "hf://org/parts/text" in caught.value.advice
    assert len(HubDatasets(anonymous, 1 << 20).find_all("hf://org/parts/text", "f", training=True)) == 3


def test_rows_to_evaluate_on_are_no_guess(hub: Hub) -> None:
    with pytest.raises(JobError) as caught:
        HubDatasets(anonymous, 1 << 20).find_all("hf://org/splits", "f", training=False)
    assert caught.value.reason == "SEVERAL_FILES"


def test_download_ends_when_its_job_does(hub: Hub, tmp_path: Path) -> None:
    """It would otherwise fill the disk of the next job."""

    def stop() -> None:
        raise RuntimeError("over")

    datasets = HubDatasets(anonymous, 1 << 20)
    found = datasets.find("hf://org/one", "f")
    with pytest.raises(RuntimeError, match="over"):
        datasets.fetch(found, tmp_path / "here", go_on=stop)
    assert not (tmp_path / "here").exists()
    assert datasets.fetch(found, tmp_path / "here").path.read_bytes() == 2 * ROWS


def test_files_of_one_dataset_are_pinned_to_one_commit(hub: Hub) -> None:
    """Its owner may push between the two."""
    datasets = HubDatasets(anonymous, 1 << 20)
    first = datasets.find("hf://org/many/main/train.parquet", "f")
    hub.datasets["org/many"]["c" * 40] = hub.datasets["org/many"].pop(OLD)
    second = datasets.find("hf://org/many/main/test.parquet", "f")
    assert NEW in first.reference
    assert NEW in second.reference


@pytest.mark.parametrize(
    ("asked", "reason", "told"),
    [
        ("hf://org/many", "SEVERAL_FILES", "hf://org/many/main/test.parquet"),
        ("hf://org/script", "NO_READABLE_FILES", "scripts are never run"),
        ("hf://org/one/loader.py", "NO_READABLE_FILES", "data/train.jsonl"),
        ("hf://org/one/train.jsonl", "DATASET_NOT_FOUND", "data/train.jsonl"),
        ("hf://org/one@v9", "DATASET_NOT_FOUND", "Check the id"),
        ("hf://org/unknown", "DATASET_NOT_FOUND", "token"),
        ("hf://org/gated", "DATASET_GATED", "https://huggingface.co/datasets/org/gated"),
        (f"hf://org/one@{NEW}", "DATASET_TOO_LARGE", "FTF_MAX_DATASET_BYTES"),
        ("hf:org/one", "INVALID_DATASET", "upload"),
    ],
)
def test_each_refusal_says_what_to_do_and_downloads_nothing(hub: Hub, asked: str, reason: str, told: str) -> None:
    with pytest.raises(JobError) as caught:
        HubDatasets(anonymous, len(ROWS)).find(asked, "spec.training_data[1].dataset")
    assert caught.value.reason == reason
    assert told in caught.value.advice
    assert caught.value.violations[0].field == "spec.training_data[1].dataset"
    assert hub.sent == {}


def test_an_unreachable_hub_is_a_system_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SystemFailure) as caught:
        HubDatasets(anonymous, 1).find("hf://org/one", "f")
    assert caught.value.reason == "HUB_UNREACHABLE"


@pytest.mark.long
def test_a_hub_that_fails_during_the_download_is_a_system_failure(hub: Hub, tmp_path: Path) -> None:
    datasets = HubDatasets(anonymous, 1 << 20)
    found = datasets.find("hf://org/one", "f")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemFailure) as caught:
        patch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            "http://127.0.0.1:9/{repo_id}/{revision}/{filename}",
        )
        patch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
        datasets.fetch(found, tmp_path / "here")
    assert caught.value.reason == "HUB_UNREACHABLE"


def test_default_job_name_is_unchanged_by_pinning() -> None:
    names = {
        job_config({"base_model": "tiny", "training_data": [{"dataset": dataset}]}).display_name
        for dataset in ("hf://org/one", f"hf://org/one@{NEW}/data/train.jsonl")
    }
    assert names == {"tiny on org/one"}
