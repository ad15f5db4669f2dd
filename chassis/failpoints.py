"""Named places where a test has this process fail: between a COMMIT and its publish, before a rename, after an ack.

A test arms a place by writing a file of its name into the folder that FTF_FAILPOINTS names; the first process to reach
the place takes the file away and does what it says, once. Without the variable a failpoint is one comparison.
"""

import errno
import os
import signal
import time
from pathlib import Path

_FOLDER = os.environ.get("FTF_FAILPOINTS", "")


class FailpointReached(Exception):
    """What `raise` raises: an error that nobody foresaw."""


def failpoint(name: str) -> None:
    """Does what was armed for `name`: `kill`, `stop` (SIGSTOP), `full` (OSError ENOSPC), `raise`, or `sleep:SECONDS`,
    which blocks the process. What was taken is left as `<name>.<pid>.taken`, for the test to see."""
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
