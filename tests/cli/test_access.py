"""`ftf login`, `whoami`, `keys`, `tenants`, `audit` and `doctor`, against a real gateway that asks for keys."""

import getpass
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from chassis.security.certificates import CertificateAuthority
from finetuneflow import Client
from finetuneflow.cli.app import build_app
from finetuneflow.cli.login import _authority
from finetuneflow.credentials import Credentials, read_credentials, store_credentials
from finetuneflow.v1.access_pb2 import Role
from finetuneflow.v1.key_service_pb2 import GetCallerResponse
from finetuneflow.v1.key_service_pb2_grpc import KeyServiceServicer, add_KeyServiceServicer_to_server
from tests.access.gateway import AccessGateway

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccessGateway]:
    gateway = AccessGateway(tmp_path_factory.mktemp("keys"), AUTH_FAILURES_PER_MINUTE="1000000")
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def stranger(real: AccessGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs one command line of a user without a key. `typed` is its stdin, which is no terminal."""
    monkeypatch.setenv("FTF_ADDRESS", real.address)
    monkeypatch.setenv("FTF_CREDENTIALS", str(tmp_path / "credentials.json"))
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "dumb")
    for name in ("FTF_TOKEN", "FTF_CA"):
        monkeypatch.delenv(name, raising=False)
    runner = CliRunner()
    return lambda *arguments, typed="": runner.invoke(build_app(), [str(a) for a in arguments], input=typed)


@pytest.fixture
def operator(stranger: Command, real: AccessGateway) -> Command:
    """The same for the first operator, whose key is stored."""
    store_credentials(real.address, Credentials(real.operator))
    return stranger


def objects(text: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in text.splitlines()]


def test_login_stores_a_key_that_works_and_says_whose_it_is(stranger: Command, real: AccessGateway) -> None:
    result = stranger("login", real.address, typed=real.operator + "\n")
    assert result.exit_code == 0, result.output
    assert real.operator not in result.output
    assert "TENANT\tROLE\tKEY\tNAME\tEXPIRES" in result.stdout
    assert f"default\toperator\t{real.operator.split('_')[1]}\tfirst operator\tnever" in result.stdout
    assert read_credentials(real.address) == Credentials(real.operator)
    assert stranger("tenants", "list").exit_code == 0
    assert objects(stranger("whoami", "--json").stdout)[0]["role"] == "ROLE_OPERATOR"
    assert "is not revoked" in stranger("logout").stdout
    assert read_credentials(real.address) is None
    assert objects(stranger("logout", "--json").stdout) == [{"address": real.address, "removed": False}]


@pytest.mark.parametrize("typed", ["", "\n", "two words\n", "schlüssel\n", "ftf_" + "a" * 16 + "_" + "0" * 64 + "\n"])
def test_login_stores_no_key_that_does_not_work(stranger: Command, real: AccessGateway, typed: str) -> None:
    store_credentials(real.address, Credentials("what was there"))
    result = stranger("login", typed=typed)
    assert result.exit_code == 2
    assert "key" in result.stderr
    assert read_credentials(real.address) == Credentials("what was there")


def test_login_on_a_terminal_does_not_show_the_key(
    stranger: Command, real: AccessGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def type_key(prompt: str) -> str:
        asked.append(prompt)
        return real.operator

    monkeypatch.setattr(getpass, "getpass", type_key)
    terminal = type("Terminal", (), {"isatty": lambda _: True})()
    monkeypatch.setattr("finetuneflow.cli.login.sys", type("Sys", (), {"stdin": terminal, "stdout": sys.stdout}))
    result = stranger("login")
    assert result.exit_code == 0, result.output
    assert asked == [f"Key for {real.address}: "]


def test_key_is_no_argument_of_login(stranger: Command, real: AccessGateway) -> None:
    """Other users of the machine see the arguments of its processes."""
    assert stranger("login", real.address, real.operator).exit_code == 2
    assert stranger("login", "--token", real.operator).exit_code == 2


def test_login_without_a_server_is_exit_code_3_and_names_the_option_for_its_authority(stranger: Command) -> None:
    result = stranger("login", "127.0.0.1:1", typed="ftf_a_b\n")
    assert result.exit_code == 3
    assert "--ca" in result.stderr
    assert read_credentials("127.0.0.1:1") is None


class AcceptsEveryKey(KeyServiceServicer):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def GetCaller(self, request: Any, context: grpc.ServicerContext) -> GetCallerResponse:
        self.seen += [str(value) for name, value in context.invocation_metadata() if name == "authorization"]
        return GetCallerResponse(tenant="default", role=Role.ROLE_MEMBER, subject="ann")


def test_login_over_tls_needs_the_file_of_the_authority_once(stranger: Command, tmp_path: Path) -> None:
    """The key must not reach a server that another authority has certified, and a file that was moved is not missed."""
    authority = CertificateAuthority.open(tmp_path / "authority")
    files = authority.issue(tmp_path / "server", "gateway", ["127.0.0.1"])
    right, wrong = tmp_path / "right.pem", tmp_path / "wrong.pem"
    right.write_text(authority.pem)
    wrong.write_text(CertificateAuthority.open(tmp_path / "other").pem)
    servicer = AcceptsEveryKey()
    server = grpc.server(ThreadPoolExecutor(1))
    add_KeyServiceServicer_to_server(servicer, server)
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', grpc.ssl_server_credentials([pair]))}"
    server.start()
    try:
        for other in ([], ["--ca", "system"], ["--ca", wrong]):
            assert stranger("login", address, *other, typed="ftf_a").exit_code == 3
        assert (servicer.seen, read_credentials(address)) == ([], None)
        assert stranger("login", address, "--ca", right, typed="ftf_a").exit_code == 0
        right.unlink()
        assert read_credentials(address) == Credentials("ftf_a", authority.pem)
        assert stranger("--address", address, "whoami").stdout.endswith("default\tmember\tann\t\t\n")
        assert stranger("login", address, typed="ftf_b").exit_code == 0, "its authority is known by now"
        assert servicer.seen == ["Bearer ftf_a", "Bearer ftf_a", "Bearer ftf_b"]
    finally:
        server.stop(None).wait()


def test_server_that_asks_for_no_keys_says_so(stranger: Command, tmp_path: Path) -> None:
    """Otherwise a login with any key looks as if the server had checked it."""
    gateway = AccessGateway(tmp_path, INSECURE="true")
    gateway.start()
    try:
        assert "asks for no keys" in stranger("login", gateway.address, typed="anything\n").stdout
        assert "asks for no keys" in stranger("--address", gateway.address, "doctor").stdout
    finally:
        gateway.stop()


def test_login_stores_the_certificates_of_a_file_and_no_private_key(
    stranger: Command, real: AccessGateway, tmp_path: Path
) -> None:
    certificate = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
    file = tmp_path / "ca.pem"
    file.write_text(f"# authority\n-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n{certificate}\n")
    assert _authority((real.address,), str(file)) == certificate + "\n"
    file.write_text("no certificate")
    for wrong in (file, tmp_path / "missing.pem"):
        result = stranger("login", "--ca", wrong, typed=real.operator)
        assert result.exit_code == 2
        assert str(wrong) in result.stderr


def test_login_says_that_the_environment_still_wins(
    stranger: Command, real: AccessGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTF_TOKEN", "ftf_old")
    assert "Unset it" in stranger("login", typed=real.operator).stderr
    refused = stranger("whoami")
    assert refused.exit_code == 2
    assert "FTF_TOKEN is set" in refused.stderr, "another login would change nothing"


def test_refused_caller_is_told_the_command_that_helps(
    stranger: Command, real: AccessGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = f"ftf login {real.address}"
    without = stranger("jobs", "list")
    assert (without.exit_code, "[NO_CREDENTIALS]" in without.stderr) == (2, True)
    assert without.stderr.count(login) == 1
    store_credentials(real.address, Credentials(real.operator[:-1]))
    wrong = stranger("jobs", "list")
    assert (wrong.exit_code, "[INVALID_KEY]" in wrong.stderr) == (2, True)
    assert wrong.stderr.count(login) == 1
    assert real.operator[:-1] not in wrong.stderr
    error = json.loads(stranger("jobs", "list", "--json").stderr)["error"]
    assert (error["code"], error["reason"]) == ("UNAUTHENTICATED", "INVALID_KEY")
    assert login in error["advice"]
    monkeypatch.delenv("FTF_ADDRESS")
    assert login in stranger("--address", real.address, "jobs", "list").stderr


def test_doctor_says_who_you_are_or_why_you_are_refused(stranger: Command, real: AccessGateway) -> None:
    refused = stranger("doctor")
    assert refused.exit_code == 3
    (line,) = [line for line in refused.stdout.splitlines() if line.startswith("FAILED")]
    assert "you" in line
    assert "NO_CREDENTIALS" in line
    assert f"ftf login {real.address}" in line
    store_credentials(real.address, Credentials(real.operator))
    checks = {check["name"]: check for check in objects(stranger("doctor", "--json").stdout)}
    assert checks["you"]["ok"] is True
    assert "tenant default, role operator, key" in checks["you"]["detail"]
    assert checks["gateway"]["ok"] is True


def test_created_key_is_alone_on_stdout_and_can_log_in(operator: Command, real: AccessGateway) -> None:
    result = operator("keys", "create", "--role", "reader", "--name", "dashboard", "--expires", "30d")
    assert result.exit_code == 0, result.output
    token = result.stdout.strip()
    assert token not in result.stderr
    assert f"ftf login {real.address}" in result.stderr
    with Client(real.address, token=token, ca="") as client:
        caller = client.keys.caller()
    assert (caller.role, caller.key and caller.key.display_name) == ("READER", "dashboard")
    assert caller.key is not None
    assert caller.key.expire_time is not None
    assert abs(caller.key.expire_time - datetime.now(UTC) - timedelta(days=30)) < timedelta(hours=1)
    logged_in = operator("login", typed=token)
    assert f"{caller.key.expire_time.astimezone():%Y-%m-%d %H:%M}" in logged_in.stdout
    refused = operator("tenants", "list")
    assert (refused.exit_code, "[ROLE_TOO_LOW]" in refused.stderr) == (2, True)
    assert "ftf login" not in refused.stderr, "the key works"


def test_keys_are_listed_and_revoked(operator: Command) -> None:
    (created,) = objects(operator("keys", "create", "--expires", "2999-12-31", "--json").stdout)
    assert created["token"].startswith("ftf_")
    key_id = created["token"].split("_")[1]
    assert f"{key_id}\tdefault\tmember\tactive" in operator("keys", "list").stdout
    assert operator("keys", "revoke", key_id).stdout == f"Revoked {key_id}\n"
    assert key_id not in operator("keys", "list").stdout
    assert f"{key_id}\tdefault\tmember\trevoked" in operator("keys", "list", "--all", "--tenant", "default").stdout
    assert all("token" not in key for key in objects(operator("keys", "list", "--all", "--json").stdout))
    assert objects(operator("keys", "revoke", key_id, "--json").stdout)[0]["id"] == key_id
    assert operator("keys", "revoke", "a" * 16).exit_code == 2


@pytest.mark.parametrize("expires", ["soon", "30", "30y", "-1d", "99999999999999d", "2999-13-01", ""])
def test_time_that_is_none_is_a_usage_error(operator: Command, expires: str) -> None:
    result = operator("keys", "create", "--expires", expires)
    assert result.exit_code == 2
    assert "30d" in result.stderr
    assert operator("keys", "create", "--expires", "2000-01-01").exit_code == 2
    assert operator("keys", "create", "--role", "king").exit_code == 2


def test_tenants_are_created_listed_and_disabled(operator: Command, real: AccessGateway) -> None:
    assert "acme\tactive" in operator("tenants", "create", "acme", "--name", "Acme Ltd").stdout
    assert operator("tenants", "create", "acme").exit_code == 2
    token = operator("keys", "create", "--tenant", "acme").stdout.strip()
    assert "acme\tdisabled" in operator("tenants", "update", "acme", "--disable").stdout
    refused = operator("login", typed=token)
    assert (refused.exit_code, "[TENANT_DISABLED]" in refused.stderr) == (2, True)
    assert operator("tenants", "update", "acme", "--enable", "--name", "Acme").exit_code == 0
    assert "acme\tactive" in operator("tenants", "list").stdout
    assert {tenant["name"] for tenant in objects(operator("tenants", "list", "--json").stdout)} >= {"acme", "default"}
    assert "--disable" in operator("tenants", "update", "acme").stderr
    own = operator("tenants", "update", "default", "--disable")
    assert (own.exit_code, "[OWN_TENANT]" in own.stderr) == (2, True)


def test_audit_log_is_a_table_or_one_object_a_line(operator: Command, real: AccessGateway) -> None:
    (created,) = objects(operator("keys", "create", "--json").stdout)
    key_id = created["token"].split("_")[1]
    operator("keys", "revoke", key_id)
    header, *rows = operator("audit", "--resource", key_id, "--since", "1h").stdout.splitlines()
    assert header == "TIME\tTENANT\tCALLER\tADDRESS\tMETHOD\tRESOURCE\tSTATUS"
    assert [row.split("\t")[4:] for row in rows] == [["CreateKey", key_id, "OK"], ["RevokeKey", key_id, "OK"]]
    own = real.operator.split("_")[1]
    entries = objects(operator("audit", "--resource", key_id, "--key", own, "--tenant", "default", "--json").stdout)
    assert [entry["method"] for entry in entries] == ["CreateKey", "RevokeKey"]
    assert created["token"] not in json.dumps(entries)
    assert operator("audit", "--since", "2999-01-01", "--json").stdout == ""
