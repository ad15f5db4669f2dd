"""The child's side of chassis.child.spare: it imports what takes long before it knows what it will work on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable

from chassis.child.pipe import CONTROL_FD, EVENT_FD, die_with_parent


def wait_for_input(warm_up: Callable[[], None]) -> None:
    """Call it before `run_child`. A child that its supervisor started without an input file warms up, waits on its
    control pipe for the line `start {"input": path, "cwd": path, "env": {…}}`, answers with a tick and is from there on
    as if it had been started with that input file in that folder and environment. For any other it does nothing.

    It ends with its supervisor. What `warm_up` raises ends it too: the supervisor starts a child without its help.
    """
    if len(sys.argv) != 1 or CONTROL_FD not in os.environ:
        return
    die_with_parent()
    warm_up()
    start = json.loads(_line(int(os.environ[CONTROL_FD])).removeprefix("start "))
    os.chdir(start["cwd"])
    os.environ.update(start["env"])
    sys.argv.append(start["input"])
    os.write(int(os.environ[EVENT_FD]), b"\0")


def _line(fd: int) -> str:
    # Byte by byte: what follows the line is for whoever reads the pipe next.
    line = bytearray()
    while byte := os.read(fd, 1):
        if byte == b"\n":
            return line.decode()
        line += byte
    sys.exit(0)
