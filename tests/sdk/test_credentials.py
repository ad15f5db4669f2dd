"""The file with the keys of this user."""

import json
import stat
import threading
from pathlib import Path

import pytest

from finetuneflow import Client, InvalidArgument
from finetuneflow.connection import Connection
from finetuneflow.credentials import (
    Credentials,
    credentials_file,
    read_credentials,
    remove_credentials,
    store_credentials,
)

KEY = Credentials("ftf_a_b", "")


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "credentials.json"
    monkeypatch.setenv("FTF_CREDENTIALS", str(path))
    for name in ("FTF_TOKEN", "FTF_CA", "FTF_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    return path


def test_other_users_can_read_neither_the_keys_nor_their_folder(file: Path) -> None:
    assert store_credentials("example.org:7460", KEY) == file
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert json.loads(file.read_text()) == {"example.org:7460": {"token": "ftf_a_b", "ca": ""}}
    assert [each.name for each in file.parent.iterdir() if each.name.startswith(".")] == [], "no key is left behind"


def test_key_is_found_under_every_name_of_this_machine() -> None:
    """`ftf up` stores 127.0.0.1, and people type localhost."""
    store_credentials("localhost:7460", KEY)
    for address in ("127.0.0.1:7460", "[::1]:7460", "LOCALHOST:7460"):
        assert read_credentials(address) == KEY
    assert read_credentials("127.0.0.1:7461") is None
    assert read_credentials("example.org:7460") is None
    assert remove_credentials("[::1]:7460")
    assert not remove_credentials("[::1]:7460")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_keys_that_others_can_read_are_refused_with_the_command_that_helps(file: Path, mode: int) -> None:
    store_credentials("example.org:7460", KEY)
    file.chmod(mode)
    for refused in (
        lambda: read_credentials("example.org:7460"),
        lambda: store_credentials("example.org:7460", KEY),
        lambda: remove_credentials("example.org:7460"),
        Client,
    ):
        with pytest.raises(InvalidArgument, match=f"chmod 600 {file}") as caught:
            refused()
        assert caught.value.reason == "INVALID_CREDENTIALS_FILE"


@pytest.mark.parametrize("text", ["", "[]", '{"example.org:7460": '])
def test_damaged_file_is_refused_and_stays_as_it_is(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.touch(0o600)
    file.write_text(text)
    with pytest.raises(InvalidArgument, match="damaged"):
        store_credentials("example.org:7460", KEY)
    assert file.read_text() == text


def test_two_commands_at_once_lose_no_key() -> None:
    begin = threading.Barrier(8)

    def store(number: int) -> None:
        begin.wait()
        store_credentials(f"host-{number}:1", KEY)

    threads = [threading.Thread(target=store, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(json.loads(credentials_file().read_text())) == 8


def test_arguments_and_environment_come_before_the_stored_key(monkeypatch: pytest.MonkeyPatch) -> None:
    store_credentials("127.0.0.1:7460", Credentials("stored", ""))
    assert Connection.resolve(None, None, None).token == "stored"
    monkeypatch.setenv("FTF_TOKEN", "from-environment")
    assert Connection.resolve(None, None, None).token == "from-environment"
    assert Connection.resolve(None, "given", None).token == "given"


def test_empty_variables_are_as_if_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell script that empties a variable would otherwise be refused, with a stored key at hand."""
    store_credentials("example.org:7460", Credentials("ftf_a_b", "system"))
    monkeypatch.setenv("FTF_TOKEN", "")
    monkeypatch.setenv("FTF_CA", "")
    found = Connection.resolve("example.org:7460", None, None)
    assert (found.token, found.ca) == ("ftf_a_b", "system")
