"""The cache of downloaded models stays below its limit, and no model is deleted while a process uses it."""

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from engine.catalogue import Catalogue
from engine.errors import JobError, LimitExceeded, SystemFailure
from engine.hub import HubToken, TokenOf, anonymous
from engine.hub_cache import FolderLock, HubCache, ModelUses
from tests.fakes.hub import COMMIT, Hub
from tests.tiny_models import make_tiny_tokenizer

_UNIT = 1_000_000
"""Size of the weights of a model here; its other files have less than a tenth."""
_HOLDER = """
import os, sys
from pathlib import Path
from engine.catalogue import Catalogue
from engine.errors import SystemFailure
from engine.hub import anonymous
from engine.hub_cache import ModelUses

home, limit, model, tokenizer_only, become = sys.argv[1:]
uses = ModelUses()
try:
    Catalogue(Path(home), max_cache_bytes=int(limit)).fetch(model, anonymous, tokenizer_only == "yes", uses=uses)
except SystemFailure as error:
    print(error.reason, error.message, flush=True)
else:
    if become == "yes":
        uses.outlive_exec()
        os.execv(sys.executable, [sys.executable, "-c", "print('uses it', flush=True); input()"])
    print("uses it", flush=True)
sys.stdin.read()
"""


def of(token: str) -> TokenOf:
    def same(_repository: str) -> HubToken:
        return token

    return same


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The models org/a, org/b, org/c of one unit, and org/big of two."""
    models = {}
    for name, size in {"a": 1, "b": 1, "c": 1, "big": 2}.items():
        folder = models[f"org/{name}"] = make_tiny_tokenizer(tmp_path / "hub" / name)
        (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
        save_file({"w": numpy.zeros(size * _UNIT // 4, numpy.float32)}, str(folder / "model.safetensors"))
    with Hub(models["org/a"], models=models).asked() as hub:
        yield hub


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def cache(home: Path, units: float) -> Catalogue:
    return Catalogue(home, max_cache_bytes=int(units * _UNIT))


def held(home: Path, part: str = COMMIT) -> set[str]:
    """The names of the models of which there is this folder."""
    return {folder.parent.name.removeprefix("org--") for folder in (home / "models" / "hub").glob(f"*/{part}")}


@pytest.fixture
def using(hub: Hub, home: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a process that uses a model until its stdin ends."""
    started = []

    def start(model: str, units: float, tokenizer_only: bool = False, become: bool = False) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", _HOLDER, str(home), str(int(units * _UNIT)), model]
        argv += ["yes" if option else "no" for option in (tokenizer_only, become)]
        process = subprocess.Popen(
            argv,
            env={**os.environ, "HF_ENDPOINT": hub.endpoint},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_the_least_recently_used_model_makes_room(
    hub: Hub, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing else is deleted: not the operator's folders, not the built-in model."""
    built_in = home / "models" / "smollm2-135m" / "1" / "model.safetensors"
    built_in.parent.mkdir(parents=True)
    built_in.write_bytes(bytes(10 * _UNIT))
    evicted: list[int] = []
    own = {"mine": tmp_path / "hub" / "a"}
    catalogue = Catalogue(home, own, max_cache_bytes=int(2.5 * _UNIT), on_evicted=evicted.append)
    for model in ("mine", "org/a", "org/b", f"org/a@{COMMIT}"):
        catalogue.fetch(model, anonymous)
    records = set((home / "models" / ".weights").glob("*.json"))
    with caplog.at_level(logging.INFO):
        catalogue.fetch("org/c", anonymous)
    assert held(home) == {"a", "c"}
    assert held(home, f".{COMMIT}.partial") == set()
    assert held(home, f".{COMMIT}.public") == {"a", "c"}
    assert len(records - set((home / "models" / ".weights").glob("*.json"))) == 1, "its hash is forgotten"
    assert built_in.exists()
    assert own["mine"].is_dir()
    (line,) = [record for record in caplog.records if record.name == "engine.hub_cache"]
    assert line.getMessage() == "deleted a downloaded model to make room for org/c"
    assert vars(line)["model"] == f"org/b@{COMMIT}"
    assert vars(line)["cause"] == "a limit of 2,500,000 bytes"
    assert [vars(line)["bytes"]] == evicted
    assert _UNIT < evicted[0] < 1.1 * _UNIT


def test_a_full_disk_makes_room_first(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, a node whose disk is full of unused models fails every job with another one."""
    usage = namedtuple("usage", "total used free")

    def disk(_path: Path) -> usage:
        used = sum(file.stat().st_size for file in home.rglob("*") if file.is_file())
        return usage(100 * _UNIT, used, int(1.5 * _UNIT) - used)

    catalogue = Catalogue(home)
    catalogue.fetch("org/a", anonymous)
    monkeypatch.setattr(shutil, "disk_usage", disk)
    catalogue.fetch("org/b", anonymous)
    assert held(home) == {"b"}
    with pytest.raises(SystemFailure, match="it would still lack") as caught:
        catalogue.fetch("org/big", anonymous)
    assert caught.value.reason == "DISK_FULL"
    assert held(home) == {"b"}, "what does not suffice is not deleted"


def test_a_model_above_the_limit_of_all_deletes_nothing(hub: Hub, home: Path) -> None:
    catalogue = cache(home, 1.5)
    catalogue.fetch("org/a", anonymous)
    with pytest.raises(LimitExceeded, match=r"the limit of all models on a node is 1,500,000 bytes") as caught:
        catalogue.fetch("org/big", anonymous)
    assert (caught.value.reason, caught.value.setting) == ("MODEL_TOO_LARGE", "FTF_HUB_CACHE_BYTES")
    assert held(home) == {"a"}


@pytest.mark.parametrize("become", [False, True], ids=["same program", "another program"])
def test_a_model_in_use_stays_until_its_process_ends(
    hub: Hub, home: Path, using: Callable[..., subprocess.Popen[str]], become: bool
) -> None:
    """A training reads its weights for hours. A process that was killed says nothing, and must not keep the room."""
    catalogue = cache(home, 2.5)
    user = using("org/a", 2.5, become=become)
    assert said(user) == "uses it"
    catalogue.fetch("org/b", anonymous)
    with pytest.raises(SystemFailure, match=r"those in use leave 1,\d{3},\d{3}\.") as caught:
        catalogue.fetch("org/big", anonymous)
    assert caught.value.reason == "DISK_FULL"
    assert "FTF_HUB_CACHE_BYTES" in caught.value.advice
    assert held(home) == {"a", "b"}, "what does not suffice is not deleted"
    catalogue.fetch("org/c", anonymous)
    assert held(home) == {"a", "c"}, "org/a was used before org/c, but is in use"
    user.kill()
    user.wait()
    catalogue.fetch("org/big", anonymous)
    assert held(home) == {"big"}


def test_the_end_of_a_use_counts_as_use(hub: Hub, home: Path) -> None:
    """The time of the last use is that of its end: a model that was used for days is not deleted first."""
    catalogue = cache(home, 2.5)
    with ModelUses() as uses:
        catalogue.fetch("org/a", anonymous, uses=uses)
        catalogue.fetch("org/b", anonymous)
    catalogue.fetch("org/c", anonymous)
    assert held(home) == {"a", "c"}


def test_a_download_whose_caller_has_gone_leaves_nothing_in_use(hub: Hub, home: Path) -> None:
    uses = ModelUses()
    uses.close()
    cache(home, 1.5).fetch("org/a", anonymous, uses=uses)
    cache(home, 1.5).fetch("org/b", anonymous)
    assert held(home) == {"b"}


def test_a_running_download_keeps_its_files_and_its_room(
    hub: Hub, home: Path, using: Callable[..., subprocess.Popen[str]]
) -> None:
    """Two downloads that each count the same free room would together exceed the limit, or fill the disk."""
    began, go_on = threading.Event(), threading.Event()

    def wait(model: str) -> None:
        if model == "org/a":
            began.set()
            assert go_on.wait(60)

    hub.before_sending = wait
    first = using("org/a", 1.5)
    try:
        assert began.wait(60)
        second = using("org/b", 1.5)
        assert said(second).startswith("DISK_FULL")
        assert held(home, f".{COMMIT}.partial") == {"a"}
    finally:
        go_on.set()
    assert said(first) == "uses it"
    assert held(home) == {"a"}


def test_two_processes_that_want_the_same_model_download_it_once(
    hub: Hub, home: Path, using: Callable[..., subprocess.Popen[str]]
) -> None:
    both = [using("org/a", 1.5), using("org/a", 1.5)]
    assert [said(process) for process in both] == ["uses it"] * 2
    assert hub.sent["model.safetensors"] < 1.1 * _UNIT
    both[0].kill()
    both[0].wait()
    with pytest.raises(SystemFailure, match="those in use leave"):
        cache(home, 1.5).fetch("org/b", anonymous)


def test_nobody_waits_for_a_model_until_its_other_users_have_ended(tmp_path: Path) -> None:
    """The second of two jobs would begin when the first has trained for days."""
    hub_cache = HubCache(tmp_path, None, lambda _folder, _size: None)
    with ThreadPoolExecutor(2) as pool:
        for attempt in range(100):
            folder, begin = tmp_path / "org--a" / str(attempt), threading.Barrier(2)

            def use(folder: Path = folder, begin: threading.Barrier = begin) -> FolderLock:
                begin.wait(10)
                return hub_cache.used_or_downloaded(folder, lambda _lock: folder.mkdir())

            for lock in [use.result(30) for use in [pool.submit(use), pool.submit(use)]]:
                lock.close()


def test_the_download_of_a_killed_process_makes_room(
    hub: Hub, home: Path, using: Callable[..., subprocess.Popen[str]]
) -> None:
    """It would otherwise take room until the same model is wanted again."""
    began, killed = threading.Event(), threading.Event()

    def wait(model: str) -> None:
        if model == "org/a":
            began.set()
            assert killed.wait(60)

    hub.before_sending = wait
    first = using("org/a", 1.5)
    try:
        assert began.wait(60)
        first.kill()
        first.wait()
    finally:
        killed.set()
    assert held(home, f".{COMMIT}.partial") == {"a"}
    Catalogue(home, max_cache_bytes=size_of(hub.models["org/b"])).fetch("org/b", anonymous)
    assert held(home, f".{COMMIT}.partial") == set()
    assert held(home) == {"b"}


def test_tokenizers_alone_are_deleted_and_kept_like_models(
    hub: Hub, home: Path, using: Callable[..., subprocess.Popen[str]]
) -> None:
    part = f"{COMMIT}-tokenizer"
    cache(home, 1).fetch("org/a", anonymous, tokenizer_only=True)
    assert said(using("org/b", 1, tokenizer_only=True)) == "uses it"
    assert held(home, part) == {"a", "b"}
    limit = size_of(home / "models" / "hub" / "org--b" / part) + size_of(hub.models["org/c"])
    Catalogue(home, max_cache_bytes=limit).fetch("org/c", anonymous)
    assert held(home, part) == {"b"}, "org/a had to make room"


def test_a_query_about_a_whole_model_keeps_the_whole_model(
    hub: Hub, home: Path, using: Callable[..., subprocess.Popen[str]]
) -> None:
    """It reads the tokenizer in the same folder."""
    cache(home, 1.5).fetch("org/a", anonymous)
    assert said(using("org/a", 1.5, tokenizer_only=True)) == "uses it"
    with pytest.raises(SystemFailure, match="those in use leave"):
        cache(home, 1.5).fetch("org/b", anonymous)


def test_a_model_that_became_gated_while_it_was_deleted_is_not_public(hub: Hub, home: Path) -> None:
    """The note that everybody may read it would outlive the files that it was about."""
    catalogue = cache(home, 1.5)
    catalogue.fetch("org/a", anonymous)
    catalogue.fetch("org/b", anonymous)
    hub.readers = {"hf_reader"}
    # A fetch of the tokenizer alone, or a download that failed, leaves a mark as well.
    (home / "models/hub/org--a" / f".{COMMIT}.public").touch()
    catalogue.fetch("org/a", of("hf_reader"))
    with pytest.raises(JobError) as caught:
        catalogue.fetch(f"org/a@{COMMIT}", anonymous)
    assert caught.value.reason == "MODEL_GATED"


def test_a_model_that_is_deleted_between_two_looks_is_downloaded_within_its_limits(
    hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a model on this machine the hub is not asked about sizes."""
    catalogue = Catalogue(home, max_model_bytes=_UNIT // 2)
    Catalogue(home).fetch("org/a", anonymous)
    resolved = Catalogue._resolved

    def delete_after(self: Catalogue, *given: object) -> object:
        found = resolved(self, *given)  # type: ignore[arg-type]
        shutil.rmtree(home / "models/hub/org--a" / COMMIT)
        return found

    monkeypatch.setattr(Catalogue, "_resolved", delete_after)
    with pytest.raises(LimitExceeded) as caught:
        catalogue.fetch(f"org/a@{COMMIT}", anonymous)
    assert caught.value.setting == "FTF_MAX_MODEL_BYTES"
