"""Becomes a program that cannot outlive its parent: `python guard.py PARENT SIGNAL PROGRAM [ARGUMENT...]`.

The kernel sends SIGNAL to the program when PARENT dies, however it dies; the setting outlives the exec. Linux only:
elsewhere the program just runs. The kernel watches the *thread* that started us, so that must be the parent's main one.

Standard library only, and run by path with `-I -S`: it costs 15 ms and sees nothing of the caller's Python settings.
"""

import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def guarded(argv: Sequence[str], number: signal.Signals = signal.SIGKILL) -> list[str]:
    """The argv that starts `argv` so that it gets `number` when this process dies. To be used in the main thread."""
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(number)), *argv]


def main(parent: int, number: int, argv: list[str]) -> None:
    if sys.platform == "linux":
        import ctypes

        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        # It may have died before the call, and then no signal comes.
        if os.getppid() != parent:
            return
    os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
