"""Database drivers whose internals we use are pinned to reviewed versions."""

import sqlite3
import tomllib
from importlib.metadata import version
from pathlib import Path

import aiosqlite
import pytest
from packaging.requirements import Requirement

CHECKED = {
    "aiosqlite": ("0.22", "gateway/sql/sqlite.py overrides _execute and reads _connection, _running and _thread"),
}
"""Minor version for which the internals were read, and what uses them."""


@pytest.mark.parametrize("name", CHECKED)
def test_pyproject_allows_only_reviewed_driver_versions(name: str) -> None:
    """Another version could import and run, and lose writes or read rows of another transaction."""
    minor, use = CHECKED[name]
    advice = f"{use}: read {name}'s changes, run tests/gateway and benchmarks, then raise CHECKED and pyproject.toml"
    assert version(name).startswith(f"{minor}."), f"{name} {version(name)} is installed; {advice}"
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    declared = [Requirement(line) for line in project["optional-dependencies"]["gateway"]]
    (allowed,) = (each.specifier for each in declared if each.name == name)
    major, middle = map(int, minor.split("."))
    assert allowed.contains(version(name))
    assert not allowed.contains(f"{major}.{middle + 1}.0"), f"pyproject.toml allows {name}{allowed}; {advice}"


async def test_aiosqlite_executes_every_call_through_overridden_method(tmp_path: Path) -> None:
    """A call that bypasses it would use the connection in two threads at once."""
    sent: list[str] = []

    class Connection(aiosqlite.Connection):
        async def _execute(self, fn, *args, **kwargs):  # type: ignore[no-untyped-def]
            sent.append(fn.__name__)
            return await super()._execute(fn, *args, **kwargs)

    connection = Connection(lambda: sqlite3.connect(tmp_path / "db"), iter_chunk_size=64)
    assert not connection._thread.is_alive()
    async with connection:
        assert connection._running
        assert isinstance(connection._connection, sqlite3.Connection)
        cursor = await connection.cursor()
        await cursor.execute("CREATE TABLE t (x)")
        await cursor.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        await cursor.execute("SELECT x FROM t")
        assert list(await cursor.fetchall()) == [(1,), (2,)]
        await connection.commit()
        await connection.rollback()
        await cursor.close()
    for call in ("cursor", "execute", "executemany", "fetchall", "commit", "rollback", "close"):
        assert call in sent
