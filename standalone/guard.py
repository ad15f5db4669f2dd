"""Replaces itself with a program that cannot outlive its parent: `python guard.py PARENT PROGRAM [ARGUMENT...]`.

The kernel sends SIGKILL to the program when PARENT dies, in whichever way; the setting survives the exec. On systems
other than Linux the program runs without it. The kernel watches the *thread* that started this process, so the parent
must start it from its main thread.

It uses the standard library only and runs by path with `-I -S`: that takes 15 ms and ignores the caller's Python
settings.
"""

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def guarded(argv: Sequence[str]) -> list[str]:
    """Returns the command that starts `argv` so that it dies with this process. Call it in the main thread."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def main(parent: int, argv: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # If the parent died before the call, no signal comes.
        if os.getppid() != parent:
            return
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
