"""The whole system as `ftf up` runs it: real processes, a real broker, a real database, a tiny real model."""

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from finetuneflow import Client
from standalone.ports import free_port
from tests.odd_names import ODD
from tests.tiny_models import make_tiny_llama, make_tiny_model

_START_SECONDS = 60


class System:
    """A running `ftf up`."""

    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        self.address = f"127.0.0.1:{free_port()}"
        models = {
            "tiny": str(make_tiny_model(home / "tiny-model")),
            "tiny-llama": str(make_tiny_llama(home / "tiny-llama")),
        }
        self.environment = {**os.environ, "FTF_MODELS": json.dumps(models), "FTF_ADDRESS": self.address, **environment}
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        ftf = Path(sys.executable).with_name("ftf")
        port = self.address.rpartition(":")[2]
        self._process = subprocess.Popen(
            [str(ftf), "up", "--home", str(self.home), "--port", port, "--json"],
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if json.loads(line)["state"] == "up":
                return
        raise AssertionError(self.logs())

    def stop(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.stdout.read()
        self._process.wait(_START_SECONDS)

    def kill(self) -> list[psutil.Process]:
        """Simulates a power cut: SIGKILL to `ftf up`, which ends all its processes. Returns those processes."""
        assert self._process is not None
        family = psutil.Process(self._process.pid).children(recursive=True)
        self._process.kill()
        self._process.communicate()
        return family

    def processes(self, module: str) -> list[psutil.Process]:
        """Processes of this system that run `python -m <module>`."""
        assert self._process is not None
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if module in process.cmdline():
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def logs(self) -> str:
        return "\n".join(f"--- {log.name}\n{log.read_text()[-4000:]}" for log in (self.home / "logs").glob("*.log"))


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    # Every file and URL that a job makes is below this name.
    system = System(tmp_path_factory.mktemp("home") / ODD)
    system.start()
    yield system
    system.stop()


@pytest.fixture
def client(system: System) -> Iterator[Client]:
    with Client(system.address) as client:
        yield client


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 short question/answer rows."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(
        "".join(
            json.dumps({"question": f"What is {n} plus {n}?", "answer": f"The answer is {n + n}."}) + "\n"
            for n in range(200)
        )
    )
    return path


def unpacked_package(client: Client, job_id: str, folder: Path) -> Path:
    """Downloads the package of a job and unpacks it."""
    client.jobs.download(job_id, str(folder))
    (found,) = folder.rglob("finetuneflow_export.zip")
    with zipfile.ZipFile(found) as archive:
        archive.extractall(folder / "package")
    return folder / "package"
