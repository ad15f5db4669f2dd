"""A dataset that is looked at again is fetched once, in a room that does not grow."""

import hashlib
import os
from pathlib import Path

import pytest

from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from services.probe.dataset_cache import DatasetCache, sweep


class Shelf:
    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(f"file://{folder}/store")
        self.folder = folder / "kept"
        self.looks = folder / "looks"

    def put(self, name: str, data: bytes) -> str:
        source = self.looks.with_name(name)
        source.write_bytes(data)
        self.store.put_file(source, f"t/{name}")
        return hashlib.sha256(data).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_a_second_look_needs_no_store(shelf: Shelf) -> None:
    """Ten previews of a gigabyte are not ten downloads; nor is one whose bytes are thrown out while they are read."""
    sha256 = shelf.put("a.jsonl", b"rows")
    kept = DatasetCache(shelf.folder, 1 << 20)
    kept.bring(shelf.store, "t/a.jsonl", sha256, shelf.looks / "1" / "a.jsonl")
    shelf.store.delete("t/a.jsonl")
    again = shelf.looks / "2" / "a.jsonl"
    DatasetCache(shelf.folder, 1 << 20).bring(shelf.store, "t/a.jsonl", sha256, again)
    (shelf.folder / sha256).unlink()
    assert again.read_bytes() == b"rows"
    with pytest.raises(ArtifactMissing):
        kept.bring(shelf.store, "t/a.jsonl", sha256, shelf.looks / "3" / "a.jsonl")


def test_what_was_not_used_for_longest_goes_first(shelf: Shelf) -> None:
    kept = DatasetCache(shelf.folder, 250)
    digests = [shelf.put(f"{n}.jsonl", bytes([n]) * 100) for n in range(3)]
    for n in (0, 1):
        kept.bring(shelf.store, f"t/{n}.jsonl", digests[n], shelf.looks / f"{n}")
        os.utime(shelf.folder / digests[n], (n, n))
    kept.bring(shelf.store, "t/0.jsonl", digests[0], shelf.looks / "again")
    kept.bring(shelf.store, "t/2.jsonl", digests[2], shelf.looks / "2")
    assert {file.name for file in shelf.folder.iterdir()} == {digests[0], digests[2]}


def test_what_a_killed_process_left_is_swept(shelf: Shelf) -> None:
    """Of a probe that is killed while it looks, gigabytes would stay for ever."""
    shelf.looks.mkdir()
    for name, age in (("old", 86_400 * 3), ("young", 0)):
        (shelf.looks / name).mkdir()
        (shelf.looks / name / "rows.jsonl").write_text("x")
        moment = (shelf.looks / name).stat().st_mtime - age
        os.utime(shelf.looks / name, (moment, moment))
    sweep(shelf.looks)
    assert [entry.name for entry in shelf.looks.iterdir()] == ["young"]
