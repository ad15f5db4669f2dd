"""What a child leaves in its output folder, and which of it a supervisor is told to store."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path

from tests.hostile.artifact import ACCEPTED, Artifact, Family, Write, home_of, outside_of

_MIB = 1 << 20
_BAD = "CRASHED"


def _put(name: str, content: bytes = b"weights") -> Write:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return write


def _link(name: str, target: str) -> Write:
    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target.format(outside=outside_of(folder), own=folder))

    return write


def _pipe(name: str) -> Write:
    return lambda folder: os.mkfifo(folder / name)


def _device(name: str, mode: int) -> Write:
    # A whiteout device needs no rights; any other would need root's.
    return lambda folder: os.mknod(folder / name, mode, os.makedev(0, 0))


def _socket(name: str) -> Write:
    def write(folder: Path) -> None:
        before = Path.cwd()
        # The path of a socket has at most 107 bytes.
        os.chdir(folder / Path(name).parent)
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(Path(name).name)
        finally:
            os.chdir(before)

    return write


def _sparse(name: str, size: int) -> Write:
    def write(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(b"a")
            file.truncate(size)

    return write


def _deep(folder: Path) -> None:
    descriptor = os.open(folder / "step-1", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("a", dir_fd=descriptor)
        inner = os.open("a", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)


def _many(folder: Path) -> None:
    for number in range(101_000):
        os.close(os.open(folder / "step-1" / str(number), os.O_WRONLY | os.O_CREAT))


def _raw_name(name: bytes) -> Write:
    return lambda folder: os.close(os.open(os.fsencode(folder / "step-1") + b"/" + name, os.O_WRONLY | os.O_CREAT))


def _all(*writes: Write) -> Write:
    def write(folder: Path) -> None:
        _put("step-1/weights")(folder)
        for each in writes:
            each(folder)

    return write


Change = Callable[[Path], None]


def _store(path: str, kind: str = "checkpoint", change: Change | None = None) -> Callable[[Path], None]:
    """Returns a check that stores `path` as a supervisor does; `change` happens after the path was looked at."""

    def check(folder: Path) -> None:
        from chassis.attempt import uploads as module
        from chassis.attempt.time_limits import TimeLimits
        from chassis.events import event_of
        from chassis.store.artifact_store import ArtifactStore
        from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

        assignment = work_pb2.Assignment(
            job_id="ftjob_a", tenant="default", stage=fine_tuning_job_pb2.STAGE_TRAINING, attempt=1
        )
        stored = home_of(folder) / "store"
        limits = TimeLimits(upload_retry_seconds=(), checkpoint_retry_seconds=())
        uploads = module.Uploads(ArtifactStore(stored.as_uri()), assignment, folder, limits)
        named = path.format(outside=outside_of(folder))
        payload = (
            event_pb2.CheckpointSaved(step=1, path=named)
            if kind == "checkpoint"
            else event_pb2.ArtifactSaved(path=named, kind="export_file")
        )
        pause = module.failpoint
        # The failpoint lies between the look at the path and the reading of it.
        module.failpoint = lambda name: change(folder) if change and name == "upload.store" else None
        try:
            asyncio.run(uploads.upload(event_of(payload)))
        finally:
            module.failpoint = pause
        for file in stored.rglob("*"):
            assert file.resolve().is_relative_to(stored.resolve()), file
            assert file.is_dir() or b"of another tenant" not in file.read_bytes()[:100], file

    return check


def _supersede(folder: Path) -> None:
    """A checkpoint waits for a store that is full, its parent becomes a link outside, and the next one replaces it."""
    from chassis.attempt.time_limits import TimeLimits
    from chassis.attempt.uploads import Uploads
    from chassis.events import event_of
    from chassis.store.artifact_store import ArtifactStore
    from finetuneflow.v1 import event_pb2, fine_tuning_job_pb2, work_pb2

    class Full(ArtifactStore):
        def put_folder(self, *_: object) -> None:  # type: ignore[override]
            raise OSError(28, "full")

    stage = fine_tuning_job_pb2.STAGE_TRAINING
    assignment = work_pb2.Assignment(job_id="ftjob_a", tenant="default", stage=stage, attempt=1)
    limits = TimeLimits(upload_retry_seconds=(), checkpoint_retry_seconds=())
    uploads = Uploads(Full((home_of(folder) / "store").as_uri()), assignment, folder, limits)

    async def run() -> None:
        await uploads.upload(event_of(event_pb2.CheckpointSaved(step=1, path="steps/step-1")))
        (folder / "steps").rename(folder / "moved")
        (folder / "steps").symlink_to(outside_of(folder))
        await uploads.upload(event_of(event_pb2.CheckpointSaved(step=2, path="step-1")))

    asyncio.run(run())
    assert (outside_of(folder) / "step-1" / "of-others").exists()


def _swap(name: str) -> Change:
    """Replaces a file or folder by a link to the folder outside."""

    def change(folder: Path) -> None:
        (folder / name).rename(folder / "moved")
        (folder / name).symlink_to(outside_of(folder) if (folder / "moved").is_dir() else outside_of(folder) / "secret")

    return change


_PATHS = {
    "parent": "../outside",
    "parent-of-a-step": "step-1/../../outside",
    "absolute": "{outside}",
    "password": "/etc/passwd",
    "itself": ".",
    "empty": "",
    "missing": "missing",
    "nul": "step-1\0",
    "long-part": "a" * 300,
    "long": "a/" * 5000 + "a",
    "million": "a" * _MIB,
    "url": "file:///etc/passwd",
    "home": "~",
    "process": "/proc/self/environ",
}
_FOLDERS: dict[str, tuple[Write, str]] = {
    "link-to-a-file": (_link("step-1/a", "{outside}/secret"), _BAD),
    "link-to-a-folder": (_link("step-1/a", "{outside}"), _BAD),
    "link-relative": (_link("step-1/a", "../../outside/secret"), _BAD),
    "link-inside": (_link("step-1/a", "weights"), _BAD),
    "link-dangling": (_link("step-1/a", "missing"), _BAD),
    "link-to-itself": (_link("step-1/a", "a"), _BAD),
    "link-to-its-parent": (_link("step-1/a", ".."), _BAD),
    "link-to-a-device": (_link("step-1/a", "/dev/zero"), _BAD),
    "link-deep": (_link("step-1/b/c/d", "{outside}/secret"), _BAD),
    "pipe": (_pipe("step-1/a"), _BAD),
    "socket": (_socket("step-1/a"), _BAD),
    "device": (_device("step-1/a", 0o020600), _BAD),
    "sparse-100-gb": (_sparse("step-1/a", 100 << 30), _BAD),
    "sparse-8-eb": (_sparse("step-1/a", (1 << 43)), _BAD),
    "sparse-among-others": (_all(_put("step-1/b/c"), _sparse("step-1/b/a", 1 << 40)), _BAD),
    "folders-3,000-deep": (_deep, _BAD),
    "files-101,000": (_many, _BAD),
    "manifest-of-its-own": (_put("step-1/manifest.json", b'{"files": []}'), _BAD),
    "manifest-in-a-folder": (_put("step-1/a/manifest.json", b"{}"), ACCEPTED),
    "name-backslash": (_raw_name(b"..\\..\\secret"), _BAD),
    "name-not-utf8": (_raw_name(b"\xff\xfe"), _BAD),
    "name-newline": (_raw_name(b"a\nb"), ACCEPTED),
    "name-control": (_raw_name(b"\x1b[2J\x07"), ACCEPTED),
    "name-of-255-bytes": (_raw_name(b"a" * 255), ACCEPTED),
    "name-partial": (_put("step-1/.partial/a"), _BAD),
    "name-dots": (_raw_name(b"..."), ACCEPTED),
    "names-that-collide": (_all(_put("step-1/A"), _put("step-1/a")), ACCEPTED),
    "no-files": (lambda folder: (folder / "step-1" / "weights").unlink(), ACCEPTED),
    "pickle": (_put("step-1/optimizer.pt", b"\x80\x04K\x01."), ACCEPTED),
    "hard-link": (lambda folder: os.link(folder / "step-1" / "weights", folder / "step-1" / "again"), ACCEPTED),
}


def _of_others(folder: Path) -> None:
    _put("of-others")(outside_of(folder) / "step-1")
    _put("steps/step-1/weights")(folder)


CHILD_OUTPUTS = Family(
    "outputs of children",
    (
        Artifact("ordinary", _all(), _store("step-1"), ACCEPTED),
        Artifact("ordinary-file", _all(), _store("step-1/weights", "artifact"), ACCEPTED),
        *(Artifact(f"checkpoint-{name}", _all(), _store(path), _BAD) for name, path in _PATHS.items()),
        *(Artifact(f"artifact-{name}", _all(), _store(path, "artifact"), _BAD) for name, path in _PATHS.items()),
        *(
            Artifact(name, _all(write), _store("step-1"), expected, seconds=4)
            for name, (write, expected) in _FOLDERS.items()
        ),
        Artifact("named-link", _all(_link("a", "{outside}")), _store("a"), _BAD),
        Artifact("named-link-to-a-file", _all(_link("a", "{outside}/secret")), _store("a", "artifact"), _BAD),
        Artifact("named-link-inside", _all(_link("a", "step-1")), _store("a"), _BAD),
        Artifact("named-pipe", _all(_pipe("a")), _store("a", "artifact"), _BAD),
        Artifact("named-socket", _all(_socket("a")), _store("a", "artifact"), _BAD),
        Artifact("named-sparse", _all(_sparse("a", 1 << 40)), _store("a", "artifact"), _BAD),
        Artifact("named-backslash", _all(_put("a\\b")), _store("a\\b", "artifact"), _BAD),
        Artifact("below-a-link", _all(_link("a", "{outside}")), _store("a/secret", "artifact"), _BAD),
        Artifact("folder-swapped", _all(), _store("step-1", change=_swap("step-1")), _BAD),
        Artifact("file-swapped", _all(), _store("step-1", change=_swap("step-1/weights")), _BAD),
        Artifact("artifact-swapped", _all(_put("a")), _store("a", "artifact", _swap("a")), _BAD),
        Artifact("parent-swapped", _all(_put("b/secret")), _store("b/secret", "artifact", _swap("b")), _BAD),
        Artifact("parent-of-a-folder-swapped", _all(_put("b/c/d")), _store("b/c", change=_swap("b")), _BAD),
        Artifact("superseded-after-a-swap", _all(_of_others), _supersede, ACCEPTED),
    ),
)
