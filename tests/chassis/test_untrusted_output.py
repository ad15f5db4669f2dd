"""A child's output folder is looked at, never trusted."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chassis.attempt.time_limits import TimeLimits
from chassis.attempt.uploads import BadOutput, Uploads
from chassis.events import event_of
from chassis.store.artifact_store import ArtifactStore
from chassis.store.plain_files import NotPlainFile, delete_tree, file_names, open_file
from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    return folder


@pytest.fixture
def out_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "step-1").mkdir()
    (folder / "step-1" / "weights").write_text("weights")
    return folder


@pytest.fixture
def uploads(tmp_path: Path, out_dir: Path) -> Uploads:
    assignment = work_pb2.Assignment(
        job_id="ftjob_a", tenant="default", stage=fine_tuning_job_pb2.STAGE_TRAINING, attempt=1
    )
    store = ArtifactStore((tmp_path / "store").as_uri())
    return Uploads(store, assignment, out_dir, TimeLimits(upload_retry_seconds=(), checkpoint_retry_seconds=()))


def checkpoint(path: str) -> event_pb2.Event:
    return event_of(event_pb2.CheckpointSaved(step=1, path=path))


@pytest.mark.parametrize(
    "path", ["../outside", "{outside}", "step-1/../../outside", ".", "", "missing", "link", "a\0b"]
)
async def test_child_can_not_have_files_of_others_stored_or_deleted(
    uploads: Uploads, out_dir: Path, outside: Path, tmp_path: Path, path: str
) -> None:
    """A refused checkpoint waited to be superseded, and the next one deleted the folder that it named."""
    (out_dir / "link").symlink_to(outside)
    named = path.format(outside=outside)
    with pytest.raises(BadOutput):
        await uploads.upload(checkpoint(named))
    with pytest.raises(BadOutput):
        await uploads.upload(event_of(event_pb2.ArtifactSaved(path=named, kind="export_file")))
    await uploads.upload(checkpoint("step-1"))
    await uploads.finish(None)
    assert (outside / "secret").read_text() == "secret"
    assert {file.name for file in (tmp_path / "store").rglob("*") if file.is_file()} == {"weights", "manifest.json"}


@pytest.mark.parametrize(
    "put",
    [
        lambda folder, outside: (folder / "a").symlink_to(outside / "secret"),
        lambda folder, outside: (folder / "a").symlink_to(outside),
        lambda folder, outside: os.mkfifo(folder / "a"),
    ],
)
async def test_folders_with_links_or_pipes_are_not_stored(
    uploads: Uploads, out_dir: Path, outside: Path, put: Callable[[Path, Path], Any]
) -> None:
    """The supervisor can read files that the child can't, such as another job's."""
    put(out_dir / "step-1", outside)
    with pytest.raises(BadOutput):
        await uploads.upload(checkpoint("step-1"))


def test_file_is_opened_only_inside_its_folder(out_dir: Path, outside: Path) -> None:
    """The child may replace a folder by a link between the look at it and the reading of it."""
    assert file_names(out_dir) == ["step-1/weights"]
    with open_file(out_dir, "step-1/weights") as file:
        assert file.read() == b"weights"
    (out_dir / "step-1" / "weights").unlink()
    (out_dir / "step-1").rmdir()
    (out_dir / "step-1").symlink_to(outside)
    for name in ("step-1/secret", "step-1", "../outside/secret"):
        with pytest.raises(NotPlainFile):
            open_file(out_dir, name)
    with pytest.raises(NotPlainFile):
        file_names(out_dir)
    with pytest.raises(FileNotFoundError):
        open_file(out_dir, "missing")


def test_whatever_a_child_leaves_is_deleted(out_dir: Path, outside: Path) -> None:
    """Nested folders ended the supervisor, and again at each start: no training ran before somebody deleted them."""
    deepest = os.open(out_dir, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("x" * 200, dir_fd=deepest)
        inner = os.open("x" * 200, os.O_RDONLY, dir_fd=deepest)
        os.close(deepest)
        deepest = inner
    os.close(deepest)
    (out_dir / "link").symlink_to(outside)
    (out_dir / "closed" / "inner").mkdir(parents=True)
    (out_dir / "closed").chmod(0)
    os.mkfifo(out_dir / "pipe")
    delete_tree(out_dir)
    assert not out_dir.exists()
    assert (outside / "secret").read_text() == "secret"
    delete_tree(out_dir)
