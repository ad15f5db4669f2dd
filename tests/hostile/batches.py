"""Has artifacts checked by child processes, and starts another one when a child dies."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.data.work_limits import WorkLimits
from tests.hostile.checking import Result
from tests.hostile.corpus import artifact_of

ROOT = Path(__file__).parents[2]
_HANG_SECONDS = 200.0
"""Time for one artifact, on a machine that others use as well."""


def results_of(names: Iterable[str], place: Path, children: int = 2) -> dict[str, Result]:
    """Checks the artifacts with these full names in several children at a time, in folders below `place`."""
    listed = list(names)
    batches = [[name] for name in listed if artifact_of(name).alone]
    rest = [name for name in listed if not artifact_of(name).alone]
    size = -(-len(rest) // children) or 1
    batches += [rest[start : start + size] for start in range(0, len(rest), size)]
    results: dict[str, Result] = {}
    with ThreadPoolExecutor(children) as threads:
        for found in threads.map(_results, batches, (place / str(number) for number in range(len(batches)))):
            results |= found
    return results


def _results(names: list[str], place: Path) -> dict[str, Result]:
    place.mkdir(parents=True)
    results: dict[str, Result] = {}
    left = list(names)
    while left:
        with _Child(place) as child:
            while left:
                name = left.pop(0)
                results[name] = child.check(name)
                if results[name].died:
                    break
    return results


class _Child:
    def __init__(self, place: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
            "TMPDIR": str(place / "artifact" / "home"),
            "TOKENIZERS_PARALLELISM": "false",
            "OMP_NUM_THREADS": "1",
            # As in the children of services: other pools keep memory, which no limit counts when it is used again.
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            # Without these the hub would be asked, and the test would see it.
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        self._log = (place / "log").open("a+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile.checking", str(place)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env=environment,
        )

    def check(self, name: str) -> Result:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(f"{name}\n".encode())
            self._process.stdin.flush()
        except BrokenPipeError:
            return self._died()
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(_HANG_SECONDS):
                return Result(f"defect: it hung for {_HANG_SECONDS:.0f} seconds", died=True)
        line = self._process.stdout.readline()
        return Result(**json.loads(line)) if line else self._died()

    def _died(self) -> Result:
        status = self._process.wait()
        if refusal := WorkLimits().deaths().get(status):
            return Result(refusal.reason, refusal.message, died=True)
        self._log.seek(0)
        said = self._log.read()[-2000:]
        what = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return Result(f"defect: the process died with {what}", said, died=True)

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe:
                pipe.close()
