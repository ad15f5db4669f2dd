"""The file with this user's credentials: for each server a key and the certificate authority to trust."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetuneflow.errors import InvalidArgument, Violation

if sys.platform != "win32":
    import fcntl

_LOOPBACK = {"localhost", "127.0.0.1", "[::1]", "::1"}


@dataclass(frozen=True)
class Credentials:
    """API key and certificate authority for one server."""

    token: str = ""
    """API key. Empty for none."""
    ca: str = ""
    """The authority's certificate as PEM text, or `system` for the machine's own ones. Empty: no TLS."""


def credentials_file() -> Path:
    """Returns FTF_CREDENTIALS, or `finetuneflow/credentials.json` in the user's configuration folder."""
    named = os.environ.get("FTF_CREDENTIALS")
    if named:
        return Path(named).expanduser()
    folder = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(folder).expanduser() / "finetuneflow" / "credentials.json"


def read_credentials(address: str) -> Credentials | None:
    """Returns what is stored for a server (host:port), if anything. `ftf up` and `ftf login` store it.

    Raises InvalidArgument for a file that others can read or that is damaged.
    """
    entry = _read(credentials_file()).get(_key(address))
    return Credentials(str(entry.get("token", "")), str(entry.get("ca", ""))) if isinstance(entry, dict) else None


def store_credentials(address: str, credentials: Credentials) -> Path:
    """Stores the credentials of a server in the file, which only this user can read, and returns its path.

    Raises OSError if it cannot be written, and InvalidArgument as `read_credentials`.
    """
    with _changed() as entries:
        entries[_key(address)] = {"token": credentials.token, "ca": credentials.ca}
    return credentials_file()


def remove_credentials(address: str) -> bool:
    """Removes what is stored for a server. Returns False if there was nothing."""
    if read_credentials(address) is None:
        return False
    with _changed() as entries:
        entries.pop(_key(address), None)
    return True


def _key(address: str) -> str:
    host, _, port = address.strip().lower().rpartition(":")
    return f"127.0.0.1:{port}" if host in _LOOPBACK else f"{host}:{port}"


@contextlib.contextmanager
def _changed() -> Iterator[dict[str, object]]:
    path = credentials_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Two commands at once must not lose each other's entry.
    with path.with_suffix(".lock").open("a") as lock:
        if sys.platform != "win32":
            fcntl.flock(lock, fcntl.LOCK_EX)
        entries = _read(path)
        yield entries
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with os.fdopen(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
            ) as file:
                json.dump(entries, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open(encoding="utf-8") as file:
            if sys.platform != "win32" and os.fstat(file.fileno()).st_mode & 0o077:
                raise _invalid(f"{path} holds keys and can be read by other users; run: chmod 600 {path}")
            entries = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError:
        raise _invalid(f"{path} is damaged; delete it and run `ftf login` again") from None
    if not isinstance(entries, dict):
        raise _invalid(f"{path} is damaged; delete it and run `ftf login` again")
    return entries


def _invalid(problem: str) -> InvalidArgument:
    return InvalidArgument(f"{problem}.", reason="INVALID_CREDENTIALS_FILE", violations=[Violation("token", problem)])
