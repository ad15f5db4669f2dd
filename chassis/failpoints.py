"""Failpoints: named places where a test makes this process fail, such as between a COMMIT and its publish.

A test arms a failpoint by writing a file of that name into the folder FTF_FAILPOINTS. The first process that reaches it
removes the file and performs its action, once. Without the variable a failpoint costs one comparison.
"""

import errno
import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("FTF_FAILPOINTS", "")


def folders() -> list[Path]:
    """Returns the folder of a test that arms failpoints, which a child must be able to write to."""
    return [Path(_FOLDER)] if _FOLDER else []


class FailpointReached(Exception):
    """Raised by the action `raise`, in place of an unforeseen error."""


def failpoint(name: str) -> None:
    """Performs the action armed for `name`, if any.

    Actions: `kill`, `stop` (SIGSTOP), `full` (OSError ENOSPC), `raise`, and `sleep:SECONDS`, which blocks the process.
    The file is renamed to `<name>.<pid>.taken`, so that a test can see that it was reached.
    """
    if not _FOLDER:
        return
    armed = Path(_FOLDER, name)
    taken = armed.with_name(f"{name}.{os.getpid()}.taken")
    try:
        armed.rename(taken)
    except FileNotFoundError:
        return
    action, _, argument = taken.read_text().strip().partition(":")
    match action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "full":
            raise OSError(errno.ENOSPC, f"failpoint {name}")
        case "raise":
            raise FailpointReached(name)
        case "sleep":
            time.sleep(float(argument))
        case _:
            raise ValueError(f"failpoint {name} is armed with {action!r}")
