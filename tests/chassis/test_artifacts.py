import contextlib
import hashlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from chassis.store.artifact_store import ArtifactCorrupt, ArtifactMissing, ArtifactStore, on_disk_of
from chassis.store.partials import WriteInProgress, WrongOffset
from tests.chassis.stores import S3Server, why_no_s3
from tests.odd_names import ODD


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "store").as_uri())


def test_file_url_with_special_characters_is_that_folder(tmp_path: Path, folder: Path) -> None:
    """With a space in its name, a home had its artifacts in another folder."""
    store = ArtifactStore((tmp_path / ODD).as_uri())
    stored = store.put_folder(folder, "default/jobs/j")
    assert (tmp_path / ODD / "default/jobs/j/a.bin").is_file()
    store.get_folder("default/jobs/j", tmp_path / "again", stored.sha256)
    assert files(tmp_path / "again") == files(folder)
    store.delete("default/jobs/j")
    assert not (tmp_path / ODD / "default/jobs/j").exists()
    assert {entry.name for entry in tmp_path.iterdir()} == {ODD, "made", "again"}


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if reason := why_no_s3():
        pytest.skip(reason)
    server = S3Server(tmp_path_factory.mktemp("s3"))
    fsspec.filesystem(
        "s3", key=server.user, secret=server.password, endpoint_url=server.endpoint, skip_instance_cache=True
    ).mkdir(server.bucket)
    yield server
    server.stop()


@pytest.fixture(params=["file", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ArtifactStore:
    """A store of each kind, so that the same contract is tested on all of them."""
    if request.param == "file":
        return ArtifactStore((tmp_path / "store").as_uri())
    server: S3Server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return ArtifactStore(f"s3://{server.bucket}/{tmp_path.name}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.bin").write_bytes(b"a" * 2_500_000)
    (made / "sub/b.txt").write_text("b")
    return made


def files(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def test_stored_folder_is_fetched_unchanged(any_store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    stored = any_store.put_folder(folder, "default/jobs/j/step-1")
    assert stored.size_bytes == 2_500_001
    assert any_store.put_folder(folder, "default/jobs/j/step-1") == stored
    any_store.get_folder(stored.path, tmp_path / "back", stored.sha256)
    assert files(tmp_path / "back") == ["a.bin", "sub/b.txt"]
    assert (tmp_path / "back/a.bin").read_bytes() == (folder / "a.bin").read_bytes()
    (folder / "sub/b.txt").write_text("c")
    with pytest.raises(FileExistsError):
        any_store.put_folder(folder, "default/jobs/j/step-1")
    any_store.delete("default/jobs/j/step-1")
    assert not any_store.exists("default/jobs/j/step-1/manifest.json")
    with pytest.raises(ArtifactMissing):
        any_store.get_folder(stored.path, tmp_path / "again", stored.sha256)
    assert any_store.put_folder(folder, "default/jobs/j/step-1").sha256 != stored.sha256


def test_part_of_a_folder_is_fetched_alone(any_store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    """Held-out rows lie beside training rows of any size."""
    (folder / "subset").mkdir()
    (folder / "subset/c.txt").write_text("c")
    stored = any_store.put_folder(folder, "default/jobs/j/step-1")
    any_store.get_folder(stored.path, tmp_path / "part", stored.sha256, below="sub")
    assert files(tmp_path / "part") == ["sub/b.txt"]


def flip_last_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damaged", ["a.bin", "sub/b.txt", "manifest.json"])
@pytest.mark.parametrize("damage", [flip_last_bit, lambda data: data[:-1], lambda data: data + b"x", lambda data: b""])
def test_fetch_of_damaged_checkpoint_fails(
    any_store: ArtifactStore, folder: Path, tmp_path: Path, damaged: str, damage: Callable[[bytes], bytes]
) -> None:
    """Training from flipped bits would look like success."""
    stored = any_store.put_folder(folder, "default/j")
    with any_store.open_read(f"default/j/{damaged}") as source:
        data = source.read()
    with any_store.begin_write(f"default/j/{damaged}") as writer:
        writer.write(damage(data))
        writer.commit()
    with pytest.raises(ArtifactCorrupt):
        any_store.get_folder(stored.path, tmp_path / "back", stored.sha256)
    assert {path.name for path in tmp_path.iterdir()} <= {"store", "made"}


@pytest.mark.parametrize("gone", [True, False])
def test_fetch_of_checkpoint_with_missing_or_extra_files_fails(
    any_store: ArtifactStore, folder: Path, tmp_path: Path, gone: bool
) -> None:
    stored = any_store.put_folder(folder, "default/j")
    if gone:
        any_store.delete("default/j/sub/b.txt")
    else:
        any_store.put_file(folder / "a.bin", "default/j/sub/added.bin")
    with pytest.raises(ArtifactCorrupt, match=r"b\.txt" if gone else r"added\.bin"):
        any_store.get_folder(stored.path, tmp_path / "back", stored.sha256)


@pytest.mark.parametrize("name", ["../../../etc/cron.d/x", "/etc/x", "a/../../x", "a\\b", "", "manifest.json"])
def test_manifest_with_path_outside_folder_is_refused(store: ArtifactStore, tmp_path: Path, name: str) -> None:
    """Otherwise write access to one folder of the store would give access to the disk of each worker that reads it."""
    manifest = json.dumps({"version": 1, "files": [{"path": name, "sha256": "0" * 64, "size_bytes": 1}]}).encode()
    with store.begin_write("default/j/manifest.json") as writer:
        writer.write(manifest)
        writer.commit()
    with pytest.raises(ArtifactCorrupt):
        store.get_folder("default/j", tmp_path / "back", hashlib.sha256(manifest).hexdigest())
    assert not (tmp_path / "back").exists()


def test_file_appears_only_when_complete(any_store: ArtifactStore, tmp_path: Path) -> None:
    with any_store.begin_write("default/datasets/d/rows.jsonl") as writer:
        writer.write(b"half")
    assert not any_store.exists("default/datasets/d/rows.jsonl")
    with any_store.begin_write("default/datasets/d/rows.jsonl") as writer:
        writer.write(b"whole")
        assert not any_store.exists("default/datasets/d/rows.jsonl")
        stored = writer.commit()
    assert (stored.size_bytes, stored.sha256) == (5, hashlib.sha256(b"whole").hexdigest())
    with any_store.open_read(stored.path, 2) as source:
        assert source.read() == b"ole"
    any_store.get_file(stored.path, tmp_path / "back", stored.sha256)
    assert (tmp_path / "back").read_bytes() == b"whole"
    with pytest.raises(ArtifactCorrupt):
        any_store.get_file(stored.path, tmp_path / "other", "0" * 64)
    assert files(tmp_path / "store") in ([], ["default/datasets/d/rows.jsonl"])


def test_large_file_is_stored_and_read(any_store: ArtifactStore, tmp_path: Path) -> None:
    """An object store receives it in several parts."""
    data = bytes(range(256)) * (12 << 12)
    (tmp_path / "large").write_bytes(data)
    stored = any_store.put_file(tmp_path / "large", "default/large")
    assert stored.sha256 == hashlib.sha256(data).hexdigest()
    any_store.get_file("default/large", tmp_path / "back", stored.sha256)
    with any_store.begin_write("default/cut") as writer:
        writer.write(data)
    assert not any_store.exists("default/cut")


def test_interrupted_write_resumes_where_supported(any_store: ArtifactStore) -> None:
    writer = any_store.resume_write("default/d", "key", 0)
    writer.write(b"first")
    writer.suspend()
    held = any_store.held_bytes("key")
    for offset in {1, 4, 5, 6} - {held}:
        with pytest.raises(WrongOffset) as caught:
            any_store.resume_write("default/d", "key", offset)
        assert caught.value.received_bytes == held
    assert any_store.held_bytes("another") == 0
    with any_store.resume_write("default/d", "key", held) as writer:
        assert writer.size_bytes == held
        writer.write(b"first second"[held:])
        assert writer.commit().sha256 == hashlib.sha256(b"first second").hexdigest()
    assert any_store.held_bytes("key") == 0
    with any_store.open_read("default/d") as source:
        assert source.read() == b"first second"


def test_commit_can_be_retracted(any_store: ArtifactStore) -> None:
    """Needed if the row that refers to the file cannot be written."""
    writer = any_store.resume_write("default/d", "key", 0)
    writer.write(b"bytes")
    writer.commit()
    writer.retract()
    writer.suspend()
    assert not any_store.exists("default/d")
    with any_store.resume_write("default/d", "key", any_store.held_bytes("key")) as writer:
        writer.write(b"bytes"[writer.size_bytes :])
        assert writer.commit().sha256 == hashlib.sha256(b"bytes").hexdigest()


def test_second_writer_of_same_file_is_refused(store: ArtifactStore) -> None:
    with store.resume_write("default/d", "key", 0) as writer:
        with pytest.raises(WriteInProgress):
            store.resume_write("default/d", "key", 0)
        writer.write(b"bytes")
        writer.commit()
    assert store.exists("default/d")


def test_file_with_longest_possible_name_is_stored(store: ArtifactStore, tmp_path: Path) -> None:
    name = "n" * 249 + ".jsonl"
    with store.begin_write(f"default/datasets/d/{name}") as writer:
        writer.write(b"row")
        stored = writer.commit()
    store.get_file(stored.path, tmp_path / name, stored.sha256)
    assert (tmp_path / name).read_bytes() == b"row"


def test_partial_files_of_killed_process_are_deleted(store: ArtifactStore, tmp_path: Path) -> None:
    """Otherwise killed writers would fill the disk."""
    code = (
        "import os, sys; from chassis.store.artifact_store import ArtifactStore; store = ArtifactStore(sys.argv[1])\n"
        "store.begin_write('default/d').write(b'x')\n"
        "with store._partials.folder() as stage: (stage / 'a').touch(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, store.url], check=False)
    assert len(files(tmp_path / "store")) == 2
    store.sweep()
    assert len(files(tmp_path / "store")) == 2
    store.sweep(older_than_seconds=-1)
    assert list((tmp_path / "store/.partial").iterdir()) == []


def test_files_being_written_are_not_swept(store: ArtifactStore) -> None:
    """Neither a slow upload nor a clock that jumps may delete a file while it is written."""
    with store.begin_write("default/d") as writer, store.resume_write("default/e", "key", 0) as held:
        writer.write(b"x")
        held.write(b"y")
        store.sweep(older_than_seconds=-1)
        writer.commit()
        held.commit()
    assert store.open_read("default/d").read() == b"x"
    assert store.open_read("default/e").read() == b"y"


def test_failed_store_of_folder_leaves_no_files(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        store.put_folder(folder, "default/j")
    assert not store.exists("default/j")


@contextlib.contextmanager
def disk_with(left: int) -> Iterator[None]:
    """Runs with a file size limit: a process observes a full disk in the same way."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (left, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_full_disk_leaves_no_partial_checkpoint(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    """An incomplete checkpoint would be resumed from, or keep the disk full."""
    for put in (
        lambda: store.put_file(folder / "a.bin", "default/a"),
        lambda: store.put_folder(folder, "default/j"),
    ):
        with disk_with(1_000_000), pytest.raises(OSError, match="File too large"):
            put()
        assert files(tmp_path / "store") == []
        assert list((tmp_path / "store/.partial").iterdir()) == []
    stored = store.put_folder(folder, "default/j")
    with disk_with(1_000_000), pytest.raises(OSError, match="File too large"):
        store.get_folder("default/j", tmp_path / "back", stored.sha256)
    assert {path.name for path in tmp_path.iterdir()} == {"store", "made"}


@pytest.mark.parametrize("place", ["store.synced", "store.renamed"])
@pytest.mark.parametrize("what", ["put_folder", "put_file"])
def test_writer_killed_at_rename_leaves_complete_folder_or_none(
    store: ArtifactStore, folder: Path, tmp_path: Path, place: str, what: str
) -> None:
    (tmp_path / "armed").mkdir()
    (tmp_path / "armed" / place).write_text("kill")
    code = (
        "import sys; from pathlib import Path; from chassis.store.artifact_store import ArtifactStore\n"
        f"ArtifactStore(sys.argv[1]).{what}(Path(sys.argv[2]), 'default/j')"
    )
    source = folder if what == "put_folder" else folder / "a.bin"
    environment = {**os.environ, "FTF_FAILPOINTS": str(tmp_path / "armed")}
    command = [sys.executable, "-c", code, store.url, str(source)]
    assert subprocess.run(command, env=environment, check=False).returncode == -9
    assert store.exists("default/j") == (place == "store.renamed")
    if what == "put_folder":
        stored = store.put_folder(folder, "default/j")
        store.get_folder("default/j", tmp_path / "back", stored.sha256)
        assert files(tmp_path / "back") == ["a.bin", "sub/b.txt"]
    else:
        stored = store.put_file(source, "default/j")
        store.get_file("default/j", tmp_path / "back", stored.sha256)


def test_folder_is_synced_before_it_is_visible(
    store: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power loss a visible folder is complete: its files, its subfolders, and its own name."""
    log: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def logged_fsync(descriptor: int) -> None:
        log.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        fsync(descriptor)

    def logged_rename(self: Path, target: Path) -> Path:
        log.append("renamed")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(Path, "rename", logged_rename)
    store.put_folder(folder, "default/jobs/j/step-1")
    before, after = log[: log.index("renamed")], log[log.index("renamed") + 1 :]
    stage = next(name for name in before if name.endswith("/manifest.json")).removesuffix("/manifest.json")
    root = store.url.removeprefix("file://")
    assert {stage, f"{stage}/a.bin", f"{stage}/sub", f"{stage}/sub/b.txt"} <= set(before)
    assert {root, f"{root}/default", f"{root}/default/jobs"} <= set(before)
    assert after == [f"{root}/default/jobs/j"]


def test_concurrent_stores_of_same_folder_both_succeed(store: ArtifactStore, folder: Path) -> None:
    """A worker whose report was lost, and the worker that replaced it."""
    with ThreadPoolExecutor(4) as pool:
        stored = list(pool.map(lambda _: store.put_folder(folder, "default/j"), range(8)))
    assert len(set(stored)) == 1


def test_folder_never_replaces_another_file_or_folder(store: ArtifactStore, folder: Path) -> None:
    store.put_file(folder / "a.bin", "default/file")
    store.put_file(folder / "a.bin", "default/strange/a.bin")
    for path in ("default/file", "default/strange"):
        with pytest.raises(FileExistsError):
            store.put_folder(folder, path)
    assert store.exists("default/strange/a.bin")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "default/../../x", "default//x", "default/.", ".partial/x", "a\\b"]
)
def test_path_outside_store_is_refused(store: ArtifactStore, path: str) -> None:
    """File names come from callers."""
    with pytest.raises(ValueError, match="not a path"):
        store.open_read(path)


def test_missing_artifact_raises_artifact_missing(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing):
        store.open_read("default/nothing")
    with pytest.raises(ArtifactMissing):
        store.get_folder("default/nothing", tmp_path / "x", "0" * 64)
    store.delete("default/nothing")


def test_store_on_local_disk_is_detected(tmp_path: Path) -> None:
    """Neither exists before the first job; an object store uses no local disk."""
    assert on_disk_of((tmp_path / "home" / "artifacts").as_uri(), tmp_path / "home")
    assert not on_disk_of("memory://artifacts", tmp_path)
