"""An export of a finished job succeeds when any of its processes is killed at any failpoint."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.file_hash import sha256_of
from finetuneflow import Client
from finetuneflow.resources.export import Export
from tests.e2e.conftest import System

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    home = tmp_path_factory.mktemp("home")
    (home / "failpoints").mkdir()
    system = System(
        home,
        FTF_FAILPOINTS=str(home / "failpoints"),
        FTF_GATEWAY_LEASE_SECONDS="5",
        # Shorter than the stop in the middle of an export, so that a drain has to release it.
        FTF_EXPORTER_DRAIN_SECONDS="1",
    )
    system.start()
    yield system
    system.stop()


FORMATS = ("adapter", "merged", "gguf")


@dataclass
class Reference:
    """A finished job and the files of an export of it without faults."""

    model: str
    package_sha256: str
    files: dict[str, str]
    """SHA-256 of each file of the download by name."""


@pytest.fixture(scope="module")
def reference(system: System, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    with Client(system.address) as client:
        hyperparameters = {"max_steps": 10, "max_length": 64}
        job = client.jobs.create(base_model="tiny-llama", training_data=str(rows), hyperparameters=hyperparameters)
        model = client.jobs.wait(job.id).tuned_model
        export = client.exports.wait(client.exports.create(model, formats=FORMATS).id)
        assert export.result is not None
        files = download_hashes(client, export, tmp_path_factory.mktemp("unfaulted"))
    return Reference(model, export.result.package_sha256, files)


def download_hashes(client: Client, export: Export, folder: Path) -> dict[str, str]:
    """Downloads an export; the files in the answer are those in the folder, each once."""
    paths = client.exports.download(export.id, folder)
    assert sorted(paths) == sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


class WatchedExport:
    """An export of the finished job, watched in a thread from its creation to its end."""

    def __init__(self, system: System, model: str) -> None:
        self.sequences: list[int] = []
        self.verifying = threading.Event()
        """Set when the child has entered its phase `verifying`."""
        self._client = Client(system.address)
        # A client that was answered before waits for a gateway that restarts.
        assert [*self._client.recipes.list(limit=1)]
        self.id = self._client.exports.create(model, formats=FORMATS).id
        self._thread = threading.Thread(target=self._follow)
        self._thread.start()

    def _follow(self) -> None:
        for event in self._client.exports.watch(self.id):
            self.sequences.append(event.sequence)
            if event.proto.phase.name == "verifying":
                self.verifying.set()

    def check(self, reference: Reference, folder: Path) -> Export:
        """Waits for the end. Checks that it succeeded, once, with the files of an export without faults."""
        self._thread.join(200)
        assert not self._thread.is_alive()
        with self._client as client:
            export = client.exports.get(self.id)
            events = list(client.exports.events(self.id))
            assert self.sequences == list(range(1, export.last_sequence + 1)), "an event was lost or repeated"
            assert [event.sequence for event in events] == self.sequences
            assert export.state == "SUCCEEDED"
            assert [event.kind for event in events].count("stage_completed") == 1
            assert [attempt.outcome for attempt in export.attempts].count("COMPLETED") == 1
            assert export.result is not None
            assert export.result.package_sha256 == reference.package_sha256
            assert download_hashes(client, export, folder) == reference.files
        return export


def arm(system: System, failpoint: str, action: str) -> None:
    (system.home / "failpoints" / failpoint).write_text(action)


def failpoint_marks(system: System, failpoint: str) -> list[Path]:
    """Returns the marker files of processes that reached the failpoint."""
    return list((system.home / "failpoints").glob(f"{failpoint}.*.taken"))


KILLS = {
    "supervisor before the answer to its claim": ("claim.granted", 1),
    "child while it writes the model": ("export.model_written", 1),
    "child between the merged weights and their tokenizer": ("export.merged", 1),
    "child after it converted the model": ("export.gguf_written", 1),
    "child while it verifies": ("export.verified", 1),
    "supervisor after an upload, before its report": ("upload.stored", 1),
    "supervisor after its files were reported, before the end": ("attempt.ending", 1),
    "gateway between commit and answer": ("decision.committed", 0),
}


@pytest.mark.parametrize("name", KILLS)
def test_killed_export_gives_same_files_as_one_without_faults(
    system: System, reference: Reference, name: str, tmp_path: Path
) -> None:
    failpoint, failures = KILLS[name]
    arm(system, failpoint, "kill")
    export = WatchedExport(system, reference.model).check(reference, tmp_path)
    assert len(failpoint_marks(system, failpoint)) == 1, "no process reached the failpoint"
    assert export.failed_attempts == failures


def test_a_drained_export_is_released_and_continued(system: System, reference: Reference, tmp_path: Path) -> None:
    """A rolling update of exporters must not cost an export one of its attempts."""
    arm(system, "export.verified", "stop")
    watched = WatchedExport(system, reference.model)
    assert watched.verifying.wait(120)
    (exporter,) = system.processes("services.exporter")
    # Its child stops before it has verified the package, or is killed before that: it can only be released.
    exporter.terminate()
    exporter.wait(60)
    (system.home / "failpoints" / "export.verified").unlink(missing_ok=True)
    export = watched.check(reference, tmp_path)
    assert [attempt.outcome for attempt in export.attempts] == ["RELEASED", "COMPLETED"]
    assert export.failed_attempts == 0
