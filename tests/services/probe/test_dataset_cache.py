"""A dataset is downloaded once for repeated queries, and the cache stays within its limit."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from services.probe.dataset_cache import DatasetCache, sweep


class Folders:
    def __init__(self, folder: Path) -> None:
        self.store = ArtifactStore(f"file://{folder}/store")
        self.folder = folder / "datasets"
        self.queries = folder / "queries"

    def put(self, name: str, data: bytes) -> str:
        source = self.queries.with_name(name)
        source.write_bytes(data)
        self.store.put_file(source, f"t/{name}")
        return hashlib.sha256(data).hexdigest()


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path)


def test_second_query_is_served_from_cache(folders: Folders) -> None:
    """Ten previews of a gigabyte are one download, and an eviction does not break a running query."""
    sha256 = folders.put("a.jsonl", b"rows")
    cache = DatasetCache(folders.folder, 1 << 20)
    cache.link(folders.store, "t/a.jsonl", sha256, folders.queries / "1" / "a.jsonl")
    folders.store.delete("t/a.jsonl")
    again = folders.queries / "2" / "a.jsonl"
    DatasetCache(folders.folder, 1 << 20).link(folders.store, "t/a.jsonl", sha256, again)
    (folders.folder / sha256).unlink()
    assert again.read_bytes() == b"rows"
    with pytest.raises(ArtifactMissing):
        cache.link(folders.store, "t/a.jsonl", sha256, folders.queries / "3" / "a.jsonl")


def test_the_least_recently_used_dataset_is_evicted_first(folders: Folders) -> None:
    cache = DatasetCache(folders.folder, 250)
    digests = [folders.put(f"{n}.jsonl", bytes([n]) * 100) for n in range(3)]
    for n in (0, 1):
        cache.link(folders.store, f"t/{n}.jsonl", digests[n], folders.queries / f"{n}")
        earlier = time.time() - 60 + n
        os.utime(folders.folder / digests[n], (earlier, earlier))
    cache.link(folders.store, "t/0.jsonl", digests[0], folders.queries / "again")
    cache.link(folders.store, "t/2.jsonl", digests[2], folders.queries / "2")
    assert {file.name for file in folders.folder.iterdir()} == {digests[0], digests[2]}


def test_copies_that_nobody_uses_are_deleted_after_a_day(folders: Folders) -> None:
    """Their owner may have deleted the dataset."""
    digests = [folders.put(f"{n}.jsonl", bytes([n]) * 100) for n in range(3)]
    cache = DatasetCache(folders.folder, 1 << 20)
    for n in (0, 1):
        cache.link(folders.store, f"t/{n}.jsonl", digests[n], folders.queries / f"{n}")
    yesterday = time.time() - 25 * 3600
    os.utime(folders.folder / digests[0], (yesterday, yesterday))
    cache.link(folders.store, "t/2.jsonl", digests[2], folders.queries / "2")
    assert {file.name for file in folders.folder.iterdir()} == set(digests[1:])
    os.utime(folders.folder / digests[1], (yesterday, yesterday))
    DatasetCache(folders.folder, 1 << 20)
    assert {file.name for file in folders.folder.iterdir()} == {digests[2]}


def test_files_of_killed_process_are_deleted(folders: Folders) -> None:
    """Otherwise gigabytes of a probe that was killed during a query would stay forever."""
    folders.queries.mkdir()
    for name, age in (("old", 86_400 * 3), ("young", 0)):
        (folders.queries / name).mkdir()
        (folders.queries / name / "rows.jsonl").write_text("x")
        moment = (folders.queries / name).stat().st_mtime - age
        os.utime(folders.queries / name, (moment, moment))
    sweep(folders.queries)
    assert [entry.name for entry in folders.queries.iterdir()] == ["young"]
