"""Becomes a program that cannot outlive its parent: `python guard.py PARENT PROGRAM [ARGUMENT...]`.

The kernel sends SIGKILL to the program when PARENT dies, however it dies; the setting outlives the exec. Linux only:
elsewhere the program just runs. The kernel watches the *thread* that started us, so that must be the parent's main one.

Standard library only, and run by path with `-I -S`: it costs 15 ms and sees nothing of the caller's Python settings.
"""

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def guarded(argv: Sequence[str]) -> list[str]:
    """The argv that starts `argv` so that it dies with this process. To be used in the main thread."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), *argv]


def main(parent: int, argv: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # It may have died before the call, and then no signal comes.
        if os.getppid() != parent:
            return
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
