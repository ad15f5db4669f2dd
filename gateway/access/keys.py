"""API keys: their form, and the first operator's key of a new system."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from pathlib import Path
from typing import Final

from finetuneflow.v1.access_pb2 import Role
from gateway.access.callers import DEFAULT_TENANT
from gateway.sql.database import Database
from gateway.sql.tables import ApiKeyRow, now

PREFIX: Final = "ftf_"
_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_TOKEN = re.compile(r"ftf_([a-z2-7]{16})_([0-9a-f]{64})")


def new_token() -> tuple[str, str]:
    """Returns the id of a new key, and the key itself: `ftf_<id>_<secret>`, with a secret of 256 random bits."""
    key_id = "".join(secrets.choice(_ID_ALPHABET) for _ in range(16))
    return key_id, f"{PREFIX}{key_id}_{secrets.token_hex(32)}"


def id_of(token: str) -> str:
    """Returns the id in a key; "" if it does not have the form of one."""
    found = _TOKEN.fullmatch(token)
    return found[1] if found else ""


def digest(token: str) -> str:
    """Returns the SHA-256 that is stored in place of a key."""
    return hashlib.sha256(token.encode()).hexdigest()


async def register_first_key(database: Database, path: Path) -> None:
    """Makes the key in the file `path` an operator's key; creates both if the file does not exist.

    A key that was revoked stays revoked: delete the file to get a new one. Raises ValueError if the file holds
    something else or if other users can read it.
    """
    token = _read_or_create(path)
    async with database.write() as session:
        if await session.get(ApiKeyRow, id_of(token)) is None:
            session.add(
                ApiKeyRow(
                    id=id_of(token),
                    tenant=DEFAULT_TENANT,
                    role=Role.ROLE_OPERATOR,
                    display_name="first operator",
                    secret_sha256=digest(token),
                    root_id=id_of(token),
                    create_time=now(),
                )
            )


def _read_or_create(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if path.stat().st_mode & 0o077:
            raise ValueError(f"{path} can be read by other users; run: chmod 600 {path}") from None
        token = path.read_text("ascii").strip()
        if not id_of(token):
            raise ValueError(f"{path} does not hold an API key; delete it, and a new one is made") from None
        return token
    _, token = new_token()
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())
    return token
