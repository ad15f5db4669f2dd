"""Commands in messages, written so that the caller can type them as they are."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from contextvars import ContextVar
from pathlib import Path

from finetuneflow.connection import DEFAULT_ADDRESS

LOOPBACK = ("127.0.0.1", "localhost")
"""Hosts of a server on this machine."""
ADDRESS: ContextVar[str | None] = ContextVar("address", default=None)
"""The value of `--address` in this run of `ftf`."""

_MENTIONED = re.compile(r"`ftf ([^`]+)`")


def ftf(arguments: str = "") -> str:
    """Returns an `ftf` command with the program and `--address` as the caller typed them: the program may be in an
    environment that is not activated, and the server may not be the default one."""
    if arguments == "up":
        return " ".join(filter(None, (_program(), arguments, _port())))
    if arguments == "login":
        return login_command(ADDRESS.get() or "")
    return " ".join(filter(None, (_program(), _address(), arguments)))


def login_command(address: str) -> str:
    """Returns the command that stores a key for the server at `address`, which is its argument."""
    return " ".join(filter(None, (_program(), "login", shlex.quote(address) if address else "")))


def new_key_advice(refusal: str) -> str:
    """Returns what to do if the server refuses the credentials with this message; "" if the message says it."""
    if "`ftf login`" in refusal:
        return ""
    if os.environ.get("FTF_TOKEN"):
        return "FTF_TOKEN is set: it is used instead of the key that `ftf login` stores. Correct or unset it."
    return f"Store a key that works: {login_command(ADDRESS.get() or DEFAULT_ADDRESS)}"


def as_typed(text: str) -> str:
    """Rewrites the commands in a text of the library or the server with `ftf()`."""
    return _MENTIONED.sub(lambda mentioned: f"`{ftf(mentioned[1])}`", text)


def _program() -> str:
    script = Path(sys.argv[0])
    if script.parts[-3:] == ("finetuneflow", "cli", "__main__.py"):
        return f"{_typed(Path(sys.executable))} -m finetuneflow.cli"
    if script.stem != "ftf" or not script.exists():
        return "ftf"
    found = shutil.which(script.name)
    return "ftf" if found and Path(found).samefile(script) else _typed(script)


def _typed(path: Path) -> str:
    return shlex.quote(min(os.path.relpath(path), str(path.absolute()), key=len))


def _address() -> str:
    address = ADDRESS.get()
    return "" if not address or address == os.environ.get("FTF_ADDRESS") else f"--address {shlex.quote(address)}"


def _port() -> str:
    """Returns the option that starts a server at the address that the caller used."""
    host, _, port = (ADDRESS.get() or "").rpartition(":")
    return f"--port {port}" if host in LOOPBACK and port.isdecimal() and port != "7460" else ""
