"""The watch finds what an artifact that got through would do; otherwise the corpus would pass for nothing."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.hostile.batches import ROOT

# Audit hooks can't be removed, so these run in a process of their own.
_PROGRAM = """
import ctypes, json, os, pickle, shutil, socket, subprocess, sys, threading
from dataclasses import asdict
from pathlib import Path

import pyarrow

from tests.hostile.artifact import Artifact, home_of, outside_of
from tests.hostile.checking import check
from tests.hostile.watch import Watch

def write(folder):
    (folder / "code.py").write_text("found = 1")
    (folder / "rows").write_text("a")
    (folder / "link").symlink_to(outside_of(folder) / "secret")

def acts(code):
    def act(folder):
        exec(code, {**globals(), "folder": folder, "outside": outside_of(folder), "home": home_of(folder)})
    return act

watch = Watch([])
results = [asdict(check(Artifact("a", write, acts(code), ""), Path(sys.argv[1]), watch)) for code in json.load(sys.stdin)]
print(json.dumps(results))
"""
_FORBIDDEN = {
    "(outside / 'secret').read_text()": "opens",
    "(folder / 'link').read_text()": "opens",
    "pyarrow.memory_map(str(outside / 'secret')).read()": "uses outside/secret",
    "os.open('secret', os.O_RDONLY, dir_fd=os.open(outside, os.O_RDONLY))": "uses outside/secret",
    "(outside / 'new').write_text('a')": "writes",
    "(folder / 'new').write_text('a')": "writes",
    "(outside / 'secret').unlink()": "changes",
    "shutil.rmtree(outside)": "changes",
    "(folder / 'rows').rename(outside / 'rows')": "changes",
    "open('/etc/passwd').read()": "opens /etc/passwd",
    "open('/proc/self/environ').read()": "environ",
    "subprocess.run(['true'])": "starts a process",
    "os.system('true')": "starts a process",
    "os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)": "starts a process",
    "os.fork() or os._exit(0)": "starts a process",
    "socket.socket().connect_ex(('127.0.0.1', 9))": "connects",
    "socket.getaddrinfo('localhost', 80)": "connects",
    "pickle.loads(pickle.dumps(os.getcwd))": "unpickles",
    "exec(open(folder / 'code.py').read())": "loads",
    "t = threading.Thread(target=lambda: open('/etc/passwd').read()); t.start(); t.join()": "opens /etc/passwd",
}
_ALLOWED = "open(folder / 'rows').read(); (home / 'a').write_text('a'); import csv, zoneinfo; open('/dev/null').read()"
_COSTLY = "b = bytearray(300 << 20); sum(range(5_000_000)); raise TypeError('odd')"

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Results:
    acts = [*_FORBIDDEN, _ALLOWED, _COSTLY]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(tmp_path_factory.mktemp("watched"))],
        input=json.dumps(acts),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    return dict(zip(acts, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("code", _FORBIDDEN)
def test_watch_hears_what_an_artifact_must_not_do(code: str, watched: Results) -> None:
    """Also what native code, another thread or a link does."""
    assert _FORBIDDEN[code] in " ".join(watched[code]["forbidden"]), watched[code]


def test_watch_allows_what_the_system_does(watched: Results) -> None:
    """Reading the artifact, writing into the home, and importing a library."""
    assert (watched[_ALLOWED]["outcome"], watched[_ALLOWED]["forbidden"]) == ("", [])


def test_time_memory_and_errors_of_a_check_are_measured(watched: Results) -> None:
    assert watched[_COSTLY]["outcome"] == "defect: TypeError: odd"
    assert watched[_COSTLY]["mib"] >= 290
    assert watched[_COSTLY]["seconds"] > 0
