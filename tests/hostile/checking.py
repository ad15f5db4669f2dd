"""The child process that checks artifacts: reads their names from its input, writes a line of JSON about each.

It writes each artifact, then checks it, watched, and measures processor time and memory.
"""

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.hostile.artifact import Artifact, home_of, outside_of
from tests.hostile.corpus import artifact_of, family_of, refusals
from tests.hostile.watch import Watch

_MAX_BYTES = 12 << 30
"""Address space of the process: a defect must not end the machine. Libraries map gigabytes that they never use."""


@dataclass(frozen=True)
class Result:
    """What the check of an artifact did."""

    outcome: str
    """Reasons of the refusal, sorted; "" if it was accepted; otherwise the defect."""
    message: str = ""
    seconds: float = 0.0
    mib: int = 0
    forbidden: tuple[str, ...] = ()
    died: bool = False
    """True if the process ended. One whose work a limit ended is no defect: its parent gives the reason."""


def check(artifact: Artifact, place: Path, watch: Watch) -> Result:
    """Writes and checks an artifact in a new folder below `place`."""
    base = place / "artifact"
    folder = base / "given"
    # An earlier process may have died in it.
    _remove(base)
    try:
        for each in (folder, outside_of(folder), home_of(folder)):
            each.mkdir(parents=True)
        (outside_of(folder) / "secret").write_text('{"secret": "of another tenant"}')
        artifact.write(folder)
        return _checked(artifact, folder, watch)
    finally:
        _remove(base)


def _remove(folder: Path) -> None:
    # shutil.rmtree fails on folders that are nested a thousand times.
    subprocess.run(["rm", "-rf", folder], check=True)


def _checked(artifact: Artifact, folder: Path, watch: Watch) -> Result:
    message = ""
    _give_back_memory()
    before, began = _resident("VmRSS"), time.process_time()
    with watch.on(folder, outside_of(folder), [home_of(folder)]) as forbidden:
        try:
            outcome = " ".join(sorted(artifact.check(folder) or ()))
        except refusals() as error:
            outcome, message = getattr(error, "reason", "") or type(error).__name__, str(error)
        except Exception as error:  # noqa: BLE001 - reported as a defect
            outcome = f"defect: {type(error).__name__}: {error}"[:500]
    seconds, grown = time.process_time() - began, _resident("VmHWM") - before
    return Result(outcome, message[:2000], round(seconds, 3), max(grown, 0) >> 20, tuple(forbidden))


def _give_back_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # 5 resets the peak.
    Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise AssertionError(name)


def main() -> None:
    place = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    watch = Watch([place / "tokenizer"])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    ready: set[str] = set()
    for line in sys.stdin:
        name = line.strip()
        family = family_of(name)
        if family.name not in ready:
            # Imports and caches are no part of what an artifact costs.
            check(family.artifacts[0], place, watch)
            ready.add(family.name)
        answers.write(json.dumps(asdict(check(artifact_of(name), place, watch))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
