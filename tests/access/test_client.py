"""The SDK and `ftf` against a gateway that asks for keys."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from finetuneflow import Client, PermissionDenied, Unauthenticated
from finetuneflow.credentials import Credentials, credentials_file, read_credentials, store_credentials
from finetuneflow.errors import InvalidArgument
from tests.access.conftest import Tokens
from tests.access.gateway import AccessGateway
from tests.access.test_keys import insert_running_job


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credentials file of the test's own."""
    monkeypatch.setenv("FTF_CREDENTIALS", str(tmp_path / "credentials.json"))
    return tmp_path


@pytest.fixture
def operator(access_gateway: AccessGateway, tokens: Tokens) -> Iterator[Client]:
    with Client(access_gateway.address, token=tokens.operator) as client:
        yield client


def ftf(address: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finetuneflow.cli", "--address", address, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={key: value for key, value in os.environ.items() if key not in ("FTF_TOKEN", "FTF_ADDRESS")},
    )


def test_keys_are_created_listed_and_revoked(access_gateway: AccessGateway, operator: Client) -> None:
    end = datetime.now(UTC) + timedelta(days=30)
    created = operator.keys.create(tenant="acme", role="reader", display_name="sdk", expire_time=end)
    assert created.token not in repr(created)
    assert (created.key.role, created.key.tenant, created.key.expire_time) == ("READER", "acme", end)
    assert created.key.id in [key.id for key in operator.keys.list(tenant="acme")]
    with Client(access_gateway.address, token=created.token) as client:
        assert client.keys.caller().role == "READER"
        with pytest.raises(PermissionDenied, match="operator"):
            [*client.tenants.list()]
    assert operator.keys.revoke(created.key.id).revoke_time is not None
    assert created.key.id not in [key.id for key in operator.keys.list(tenant="acme")]
    assert created.key.id in [key.id for key in operator.keys.list(tenant="acme", include_ended=True)]
    methods = [entry.method for entry in operator.audit.list(resource=created.key.id)]
    assert methods == ["CreateKey", "RevokeKey"]


def test_tenants_have_limits_of_their_own(operator: Client) -> None:
    operator.tenants.create("limited", display_name="Limited")
    changed = operator.tenants.update("limited", limits={"max_live_jobs": 1}, disabled=False)
    assert changed.limits is not None
    assert changed.limits.max_live_jobs == 1
    assert operator.tenants.get("limited").display_name == "Limited"
    with pytest.raises(InvalidArgument):
        operator.tenants.update("limited", limits={"max_jobs": 1})


def test_watch_raises_when_its_key_is_revoked(access_gateway: AccessGateway, operator: Client) -> None:
    """A client that reconnected for ever would look as if the job were quiet."""
    key = operator.keys.create(tenant="acme")
    job_id = insert_running_job(access_gateway, "acme")
    caught: list[BaseException] = []
    connected = threading.Event()
    with Client(access_gateway.address, token=key.token) as client:

        def watch() -> None:
            try:
                connected.set()
                for _ in client.jobs.watch(job_id):
                    pass
            except Unauthenticated as error:
                caught.append(error)

        thread = threading.Thread(target=watch)
        thread.start()
        connected.wait(60)
        operator.keys.revoke(key.key.id)
        thread.join(60)
    assert [getattr(error, "reason", "") for error in caught] == ["KEY_REVOKED"]


def test_login_stores_a_key_that_every_command_then_uses(
    access_gateway: AccessGateway, tokens: Tokens, home: Path
) -> None:
    """The whole way of a new user: refused with the command that helps, login, use, logout."""
    address = access_gateway.address
    refused = ftf(address, "jobs", "list")
    assert refused.returncode == 2
    assert "login" in refused.stderr
    wrong = ftf(address, "login", stdin="ftf_wrong\n")
    assert wrong.returncode == 2
    assert not credentials_file().exists(), "a key that the server refuses was stored"
    done = ftf(address, "login", stdin=tokens.member + "\n")
    assert done.returncode == 0, done.stderr
    assert "member of tenant acme" in done.stdout
    assert tokens.member not in done.stdout + done.stderr
    assert credentials_file().stat().st_mode & 0o077 == 0
    assert ftf(address, "jobs", "list").returncode == 0
    assert json.loads(ftf(address, "whoami", "--json").stdout)["tenant"] == "acme"
    assert ftf(address, "logout").returncode == 0
    assert read_credentials(address) is None
    assert ftf(address, "jobs", "list").returncode == 2


def test_commands_for_operators(access_gateway: AccessGateway, tokens: Tokens, home: Path) -> None:
    address = access_gateway.address
    store_credentials(address, Credentials(tokens.operator))
    assert ftf(address, "tenants", "create", "cli-tenant", "--name", "From the CLI").returncode == 0
    changed = ftf(address, "tenants", "update", "cli-tenant", "--limit", "max_live_jobs=5", "--json")
    assert json.loads(changed.stdout)["limits"] == {"max_live_jobs": "5"}
    assert "cli-tenant" in ftf(address, "tenants", "list").stdout
    made = ftf(address, "keys", "create", "--tenant", "cli-tenant", "--role", "reader", "--expires", "30d")
    token = made.stdout.strip()
    key_id = token.split("_")[1]
    assert key_id in ftf(address, "keys", "list", "--tenant", "cli-tenant").stdout
    assert ftf(address, "keys", "revoke", key_id).returncode == 0
    assert key_id in ftf(address, "keys", "list", "--all").stdout
    lines = ftf(address, "audit", "--resource", key_id, "--since", "1h", "--json").stdout.splitlines()
    assert [json.loads(line)["method"] for line in lines] == ["CreateKey", "RevokeKey"]
    doctor = ftf(address, "doctor").stdout
    assert "operator of tenant default" in doctor


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "--expires", "soon"),
        ("keys", "create", "--role", "king"),
        ("audit", "--since", "yesterday"),
        ("tenants", "update", "acme", "--limit", "max_live_jobs"),
        ("tenants", "create", "Not Valid"),
        ("keys", "revoke", "nobody"),
        ("login", "--ca", "/nowhere/ca.pem"),
    ],
)
def test_wrong_arguments_are_refused_with_a_message(
    access_gateway: AccessGateway, tokens: Tokens, home: Path, arguments: tuple[str, ...]
) -> None:
    store_credentials(access_gateway.address, Credentials(tokens.operator))
    done = ftf(access_gateway.address, *arguments, stdin="ftf_x\n")
    assert done.returncode == 2, done
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_credentials_file_that_others_can_read_is_refused(home: Path) -> None:
    """Its keys may be known to others already; to use it silently would hide that."""
    store_credentials("localhost:7460", Credentials("ftf_x"))
    assert read_credentials("127.0.0.1:7460") == read_credentials("[::1]:7460") == Credentials("ftf_x")
    credentials_file().chmod(0o644)
    with pytest.raises(InvalidArgument, match="chmod 600"):
        Client("localhost:7460")
    credentials_file().chmod(0o600)
    credentials_file().write_text("{")
    with pytest.raises(InvalidArgument, match="damaged"):
        Client("localhost:7460")
