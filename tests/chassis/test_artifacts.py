import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from chassis.artifacts import ArtifactCorrupt, ArtifactMissing, ArtifactStore


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore((tmp_path / "store").as_uri())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    (made / "sub").mkdir(parents=True)
    (made / "a.bin").write_bytes(b"a" * 2_500_000)
    (made / "sub/b.txt").write_text("b")
    return made


def files(root: Path) -> list[str]:
    return sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())


def test_a_folder_comes_back_as_it_was(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    stored = store.put_folder(folder, "default/jobs/j/step-1")
    assert stored.size_bytes == 2_500_001
    assert store.put_folder(folder, "default/jobs/j/step-1") == stored
    store.get_folder(stored.path, tmp_path / "back", stored.sha256)
    assert files(tmp_path / "back") == ["a.bin", "sub/b.txt"]
    assert (tmp_path / "back/a.bin").read_bytes() == (folder / "a.bin").read_bytes()
    (folder / "sub/b.txt").write_text("c")
    with pytest.raises(FileExistsError):
        store.put_folder(folder, "default/jobs/j/step-1")


@pytest.mark.parametrize("damaged", ["a.bin", "manifest.json"])
def test_a_damaged_checkpoint_is_never_handed_out(
    store: ArtifactStore, folder: Path, tmp_path: Path, damaged: str
) -> None:
    """Training on from flipped bits would look like success."""
    stored = store.put_folder(folder, "default/j")
    file = tmp_path / "store/default/j" / damaged
    file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(ArtifactCorrupt):
        store.get_folder(stored.path, tmp_path / "back", stored.sha256)
    assert [path for path in tmp_path.iterdir() if path.name not in ("store", "made")] == []


def test_an_upload_that_is_cut_leaves_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    with store.begin_write("default/datasets/d/rows.jsonl") as writer:
        writer.write(b"half")
    assert not store.exists("default/datasets/d/rows.jsonl")
    assert files(tmp_path / "store") == []
    with store.begin_write("default/datasets/d/rows.jsonl") as writer:
        writer.write(b"whole")
        stored = writer.commit()
    assert (stored.size_bytes, stored.sha256) == (5, hashlib.sha256(b"whole").hexdigest())
    assert store.open_read(stored.path, 2).read() == b"ole"


def test_a_file_may_have_the_longest_name_there_is(store: ArtifactStore, tmp_path: Path) -> None:
    name = "n" * 249 + ".jsonl"
    with store.begin_write(f"default/datasets/d/{name}") as writer:
        writer.write(b"row")
        stored = writer.commit()
    store.get_file(stored.path, tmp_path / name, stored.sha256)
    assert (tmp_path / name).read_bytes() == b"row"


def test_what_a_killed_process_left_is_swept(store: ArtifactStore, tmp_path: Path) -> None:
    """Otherwise killed writers fill the disk for good."""
    code = (
        "import os, sys; from chassis.artifacts import ArtifactStore; store = ArtifactStore(sys.argv[1])\n"
        "store.begin_write('default/d').write(b'x')\n"
        "with store._partials.folder() as stage: (stage / 'a').touch(); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, store.url], check=False)
    assert len(files(tmp_path / "store")) == 2
    store.sweep()
    assert len(files(tmp_path / "store")) == 2
    store.sweep(older_than_seconds=-1)
    assert list((tmp_path / "store/.partial").iterdir()) == []


def test_what_is_being_written_is_not_swept(store: ArtifactStore) -> None:
    """A slow upload, or a clock that jumps, must not lose what somebody is writing."""
    with store.begin_write("default/d") as writer, store.resume_write("default/e", "key", 0) as held:
        writer.write(b"x")
        held.write(b"y")
        store.sweep(older_than_seconds=-1)
        writer.commit()
        held.commit()
    assert store.open_read("default/d").read() == b"x"
    assert store.open_read("default/e").read() == b"y"


def test_a_folder_that_cannot_be_stored_leaves_nothing(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        store.put_folder(folder, "default/j")
    assert not store.exists("default/j")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "default/../../x", "default//x", "default/.", ".partial/x", "a\\b"]
)
def test_no_path_leads_out_of_the_store(store: ArtifactStore, path: str) -> None:
    """File names come from callers."""
    with pytest.raises(ValueError, match="not a path"):
        store.open_read(path)


def test_missing_is_told_from_broken(store: ArtifactStore, tmp_path: Path) -> None:
    with pytest.raises(ArtifactMissing):
        store.open_read("default/nothing")
    with pytest.raises(ArtifactMissing):
        store.get_folder("default/nothing", tmp_path / "x", "0" * 64)
    store.delete("default/nothing")
