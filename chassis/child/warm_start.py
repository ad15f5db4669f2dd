"""The child's side of chassis.child.spare: completes slow imports before it has an input."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable

from chassis.child.pipe import CONTROL_FD, EVENT_FD, die_with_parent
from chassis.security.confinement import check_single_thread, restrict_files


def wait_for_input(warm_up: Callable[[], None]) -> None:
    """Warms up a child that was started without an input, and waits for one. Call it before `run_child`.

    The child waits on its control pipe for the line `start {"input": path, "cwd": path, "env": {…}, "files": {…}}`,
    restricts itself to these files, answers with a tick, and continues as if it had been started with that input,
    folder and environment. In any other child this does nothing.

    It ends with its supervisor, and if `warm_up` raises or left a thread behind: then the supervisor starts a child
    cold.
    """
    if len(sys.argv) != 1 or CONTROL_FD not in os.environ:
        return
    die_with_parent()
    warm_up()
    check_single_thread()
    start = json.loads(_line(int(os.environ[CONTROL_FD])).removeprefix("start "))
    os.chdir(start["cwd"])
    os.environ.update(start["env"])
    # An import may have asked for it, and Python keeps the answer.
    tempfile.tempdir = None
    restrict_files(start["files"])
    sys.argv.append(start["input"])
    os.write(int(os.environ[EVENT_FD]), b"\0")


def _line(fd: int) -> str:
    # Byte by byte: what follows the line belongs to the next reader of the pipe.
    line = bytearray()
    while byte := os.read(fd, 1):
        if byte == b"\n":
            return line.decode()
        line += byte
    sys.exit(0)
