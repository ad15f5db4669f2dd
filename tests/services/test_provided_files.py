"""Files of a corpus that a supervisor provides while its child reads: what is asked for, within the room there is."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from chassis.preparation import Stalled
from chassis.store.artifact_store import ArtifactMissing
from engine.data.requested_files import REQUESTS, RequestedFiles
from engine.errors import JobError
from services.provided_files import ProvidedFile, ProvidedFiles, check_room
from tests.services.providing import Providing


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Ten files of 1,000 bytes: a, b, …"""
    folder = tmp_path / "files"
    folder.mkdir()
    found = {}
    for name in "abcdefghij":
        found[name] = folder / f"{name}.txt"
        found[name].write_bytes(name.encode() * 1000)
    return found


def read_in_order(providing: Providing, order: str) -> str:
    """Reads the files as one stream, and returns the first byte of each."""
    requested = RequestedFiles.of_reader(providing.files.paths, providing.files.requests, "reader")
    read = []
    for at in range(len(order)):
        requested.announce(0, list(dict.fromkeys(order[at:])))
        read += requested.read(0, lambda path: iter([path.read_text()[0]]), lambda: None)
    return "".join(read)


@pytest.mark.parametrize("room", [1000, 2500, 20_000])
def test_files_are_there_when_they_are_read(files: dict[str, Path], tmp_path: Path, room: int) -> None:
    order = "abcdefghijjihgfedcbaa"
    with Providing(files, tmp_path / "attempt", tmp_path / "out", room) as providing:
        assert read_in_order(providing, order) == order
    assert providing.peak_bytes <= room
    assert len(providing.fetched) == (10 if room == 20_000 else len(providing.fetched))
    assert "".join(providing.fetched)[:3] == "abc"


def test_two_readers_share_the_files(files: dict[str, Path], tmp_path: Path) -> None:
    """The processes of one training read the same files, one a little later than the other."""
    with Providing(files, tmp_path / "attempt", tmp_path / "out", 2000) as providing:
        paths, requests = providing.files.paths, providing.files.requests
        readers = [RequestedFiles.of_reader(paths, requests, f"process-{number}") for number in range(2)]
        reading: list[Iterator[str]] = []
        for at in range(6):
            for reader in readers:
                reader.announce(0, list("abcdefghij"[at:]))
                reading.append(reader.read(0, lambda path: iter(path.read_text()), lambda: None))
                next(reading[-1])
    assert providing.fetched[:6] == list("abcdef")
    assert providing.peak_bytes <= 2000


def test_file_that_vanished_ends_the_work(files: dict[str, Path], tmp_path: Path) -> None:
    with Providing(files, tmp_path / "attempt", tmp_path / "out", 1000) as providing:
        assert read_in_order(providing, "ab") == "ab"
        providing.store.delete("default/datasets/c/c.txt")
        requested = RequestedFiles.of_reader(providing.files.paths, providing.files.requests, "reader")
        requested.announce(0, ["c"])

        def alive() -> None:
            if providing.error:
                raise providing.error

        with pytest.raises(ArtifactMissing):
            list(requested.read(0, lambda path: iter([path]), alive))


@pytest.fixture
async def attempt(tmp_path: Path) -> AsyncIterator[Path]:
    out = tmp_path / "out"
    (out / REQUESTS).mkdir(parents=True)
    yield out


async def provided_for(out: Path, fetch: object, seconds: float = 60.0) -> asyncio.Task[None]:
    file = ProvidedFile(out.parent / "sources" / "a" / "a.txt", 10, fetch)  # type: ignore[arg-type]
    return asyncio.create_task(ProvidedFiles({"a": file}, out, 100, seconds).provide())


async def test_download_that_receives_nothing_is_ended(attempt: Path) -> None:
    (attempt / REQUESTS / "r.json").write_text('{"now": ["a"], "soon": []}')

    async def fetch() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stalled):
        await (await provided_for(attempt, fetch, 0.2))


async def test_no_download_outlives_the_attempt(attempt: Path) -> None:
    (attempt / REQUESTS / "r.json").write_text('{"now": ["a"], "soon": []}')
    began, ended = asyncio.Event(), asyncio.Event()

    async def fetch() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    providing = await provided_for(attempt, fetch)
    await began.wait()
    providing.cancel()
    await asyncio.wait({providing})
    assert ended.is_set()


@pytest.mark.parametrize("request_", ["no json", '{"now": 1}', json.dumps({"now": ["../a", "b"], "soon": ["/etc"]})])
async def test_requests_that_make_no_sense_are_ignored(attempt: Path, tmp_path: Path, request_: str) -> None:
    """A child that runs a user's template might write anything there."""
    (tmp_path / "secret").write_text('{"now": ["a"], "soon": []}')
    (attempt / REQUESTS / "link.json").symlink_to(tmp_path / "secret")
    (attempt / REQUESTS / "bad.json").write_text(request_)
    os.mkfifo(attempt / REQUESTS / "pipe.json")
    fetched = asyncio.Event()

    async def fetch() -> None:
        fetched.set()

    providing = await provided_for(attempt, fetch)
    (attempt / REQUESTS / "link.json").unlink()
    (attempt / REQUESTS / "pipe.json").unlink()
    (attempt / REQUESTS / "good.json").write_text('{"now": ["a"], "soon": []}')
    await fetched.wait()
    providing.cancel()


def test_files_that_cannot_be_on_the_disk_together_are_refused(tmp_path: Path) -> None:
    def stream(**sizes: int) -> dict[str, ProvidedFile]:
        async def fetch() -> None:
            raise AssertionError

        return {place: ProvidedFile(tmp_path / f"{place}.txt", size, fetch) for place, size in sizes.items()}

    two = [stream(first=10, second=90), stream(third=10)]
    check_room(two, 100, 1, "FTF_X")
    with pytest.raises(JobError) as caught:
        check_room(two, 100, 4, "FTF_X")
    assert caught.value.reason == "DATASET_TOO_LARGE"
    assert [violation.field for violation in caught.value.violations] == ["spec.second.dataset"]
    assert "90 bytes" in caught.value.message
    assert "FTF_X" in caught.value.advice
    assert "one process" in caught.value.advice, "it would fit"
