"""Secrets of tenants, encrypted in SQL: `python -m gateway.secret_store rotate` gives them a new key."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from pydantic import SecretStr
from sqlmodel import col, select, update
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import NotFound
from gateway.quotas import DEFAULT_QUOTAS, Quotas
from gateway.settings import GatewaySettings
from gateway.sql.database import Database
from gateway.sql.tables import SecretRow, now

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecretKeys:
    """Keys of the encryption. The first one encrypts; every one decrypts."""

    file: Path
    """One key a line. It is created with a new key if it does not exist, and read at each use, so that running gateways
    follow a rotation."""
    given: SecretStr
    """Keys separated by commas, which replace the file; "": none."""

    def fernet(self) -> MultiFernet:
        """Returns the cipher. It blocks. Raises ValueError for a file that others can read or that holds no keys."""
        return MultiFernet([Fernet(key) for key in self._keys()])

    def add(self) -> None:
        """Puts a new key before the others. Raises ValueError if the keys are not in the file."""
        if self.given.get_secret_value():
            raise ValueError("FTF_GATEWAY_SECRETS_KEYS holds the keys: put a new one before them, then run this again")
        self._replace([Fernet.generate_key().decode(), *self._keys()])

    def _keys(self) -> Sequence[str]:
        if given := self.given.get_secret_value():
            return _checked(given.replace(",", " ").split(), "FTF_GATEWAY_SECRETS_KEYS")
        if not self.file.exists():
            self._create()
        if self.file.stat().st_mode & 0o077:
            raise ValueError(f"{self.file} can be read by other users; run: chmod 600 {self.file}")
        return _checked(self.file.read_text("ascii").split(), str(self.file))

    def _create(self) -> None:
        partial = self._written([Fernet.generate_key().decode()])
        try:
            # Another process that starts may have created it meanwhile: a link never replaces a file.
            with contextlib.suppress(FileExistsError):
                os.link(partial, self.file)
        finally:
            partial.unlink()

    def _replace(self, keys: Sequence[str]) -> None:
        self._written(keys).replace(self.file)

    def _written(self, keys: Sequence[str]) -> Path:
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = self.file.with_name(f".{self.file.name}.{secrets.token_hex(4)}")
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write("".join(f"{key}\n" for key in keys))
            out.flush()
            os.fsync(out.fileno())
        return partial


class SecretStore:
    """The secrets of all tenants. Without the keys, what is in SQL is of no use."""

    def __init__(self, database: Database, keys: SecretKeys, quotas: Quotas = DEFAULT_QUOTAS) -> None:
        self._database, self._keys, self._quotas = database, keys, quotas

    async def set(self, tenant: str, name: str, value: str) -> SecretRow:
        """Creates a secret or replaces its value. Raises ResourceExhausted."""
        cipher = await asyncio.to_thread(self._keys.fernet)
        ciphertext = cipher.encrypt(_bound(tenant, name) + value.encode())
        async with self._database.write() as session:
            row = await session.get(SecretRow, (tenant, name), with_for_update=True)
            if row is None:
                await self._quotas.check_new_secret(session, tenant)
                row = SecretRow(tenant=tenant, name=name, ciphertext=b"", create_time=now(), update_time=0)
            row.ciphertext, row.update_time = ciphertext, now()
            session.add(row)
        return row

    async def delete(self, tenant: str, name: str) -> None:
        """Deletes a secret. Raises NotFound."""
        async with self._database.write() as session:
            row = await session.get(SecretRow, (tenant, name), with_for_update=True)
            if row is None:
                raise NotFound("SECRET_NOT_FOUND", f"There is no secret {name!r}.")
            await session.delete(row)

    async def use(self, tenant: str, names: Collection[str]) -> Mapping[str, SecretStr]:
        """Returns the values of these secrets, and notes that they were used.

        Those that do not exist, or that no key decrypts, are missing; the log says so.
        """
        values: dict[str, SecretStr] = {}
        if not names:
            return values
        cipher = await asyncio.to_thread(self._keys.fernet)
        mine = (col(SecretRow.tenant) == tenant, col(SecretRow.name).in_(names))
        async with self._database.write() as session:
            for row in (await session.exec(select(SecretRow).where(*mine))).all():
                try:
                    values[row.name] = _opened(cipher, row)
                except InvalidToken:
                    _log.error("no key decrypts the secret %s of %s; is secrets.key the right one?", row.name, tenant)
            await session.exec(update(SecretRow).where(*mine).values(last_use_time=now()))
        return values

    async def count_closed(self) -> int:
        """Returns the number of secrets that no key decrypts, such as after the loss of the key file."""
        cipher = await asyncio.to_thread(self._keys.fernet)
        closed = 0
        async with self._database.read() as session:
            for row in (await session.exec(select(SecretRow))).all():
                try:
                    _opened(cipher, row)
                except InvalidToken:
                    closed += 1
        return closed

    async def rotate(self) -> int:
        """Encrypts every secret with the first key. Returns their number. Raises InvalidToken if no key decrypts
        one."""
        cipher = await asyncio.to_thread(self._keys.fernet)
        async with self._database.write() as session:
            rows = (await session.exec(select(SecretRow).with_for_update())).all()
            for row in rows:
                row.ciphertext = cipher.rotate(row.ciphertext)
                session.add(row)
        return len(rows)


async def existing(session: AsyncSession, tenant: str, names: Collection[str]) -> set[str]:
    """Returns which of the names are secrets of the tenant."""
    query = select(SecretRow.name).where(SecretRow.tenant == tenant, col(SecretRow.name).in_(names))
    return set((await session.exec(query)).all())


def _bound(tenant: str, name: str) -> bytes:
    # Encrypted with the value: whoever can write to SQL must not give a tenant the secret of another.
    return f"{tenant}\0{name}\0".encode()


def _opened(cipher: MultiFernet, row: SecretRow) -> SecretStr:
    prefix, data = _bound(row.tenant, row.name), cipher.decrypt(row.ciphertext)
    if not data.startswith(prefix):
        raise InvalidToken
    return SecretStr(data[len(prefix) :].decode())


def _checked(keys: Sequence[str], source: str) -> Sequence[str]:
    try:
        for key in keys:
            Fernet(key)
    except ValueError:
        keys = ()
    if not keys:
        raise ValueError(f"{source} must hold Fernet keys (32 bytes in URL-safe Base64), one a line") from None
    return keys


def secret_keys(settings: GatewaySettings) -> SecretKeys:
    """Returns the keys that the settings name."""
    return SecretKeys(settings.secrets_key_file or settings.home / "secrets.key", settings.secrets_keys)


async def _rotate(settings: GatewaySettings) -> int:
    keys = secret_keys(settings)
    if not settings.secrets_keys.get_secret_value():
        keys.add()
    database = await Database.open(settings.database)
    try:
        return await SecretStore(database, keys).rotate()
    finally:
        await database.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gateway.secret_store", description="Keys of the secrets.")
    parser.add_argument(
        "command",
        choices=["rotate"],
        help="put a new key before the others in the file (keys from the environment: change them first), and encrypt "
        "all secrets with the first key; gateways may be running",
    )
    parser.parse_args()
    try:
        number = asyncio.run(_rotate(GatewaySettings()))
    except InvalidToken:
        sys.exit("One secret is encrypted with none of these keys, so none was changed: add the key that is missing.")
    except ValueError as error:
        sys.exit(str(error))
    print(f"{number} secrets are encrypted with the first key. The keys after it are for older backups only.")  # noqa: T201


if __name__ == "__main__":
    main()
