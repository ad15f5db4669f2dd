"""`ftf secrets` against a real gateway."""

import json

import pytest
from typer.testing import CliRunner, Result

from finetuneflow import Client, NotFound
from finetuneflow.cli.app import build_app
from tests.access.conftest import Tokens
from tests.access.gateway import AccessGateway

VALUE = "hf_CanaryOfTheShell"


@pytest.fixture(autouse=True)
def environment(access_gateway: AccessGateway, tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTF_ADDRESS", access_gateway.address)
    monkeypatch.setenv("FTF_TOKEN", tokens.other_member)


def ftf(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(build_app(), list(arguments), input=stdin)


def test_secret_of_a_pipe_is_set_listed_and_deleted(access_gateway: AccessGateway) -> None:
    """Each command a script needs; none prints the value."""
    said = [ftf("secrets", "set", "shell", stdin=f"{VALUE}\n")]
    assert said[0].exit_code == 0, said[0].output
    listed = ftf("secrets", "list", "--json")
    assert [json.loads(line)["name"] for line in listed.stdout.splitlines()] == ["shell"]
    said += [listed, ftf("secrets", "list"), ftf("secrets", "delete", "shell")]
    assert said[-1].stdout.strip() == "Deleted shell"
    assert ftf("secrets", "delete", "shell").exit_code == 2
    assert not any(VALUE in each.output for each in said)


def test_value_is_no_argument() -> None:
    """Every user of a machine sees the arguments of its processes."""
    result = ftf("secrets", "set", "shell", VALUE)
    assert result.exit_code == 2 and "unexpected extra argument" in result.output


def test_empty_pipe_is_refused() -> None:
    """An unset variable of a script must not look like a stored token."""
    result = ftf("secrets", "set", "shell")
    assert result.exit_code == 2 and "has 0 bytes" in result.output


def test_client_has_secrets(access_gateway: AccessGateway, tokens: Tokens) -> None:
    with Client(access_gateway.address, token=tokens.other_member) as client:
        secret = client.secrets.set("of-client", VALUE)
        assert secret.name == "of-client" and secret.create_time and secret.last_use_time is None
        assert VALUE not in repr(secret) + str(secret.proto)
        assert [each.name for each in client.secrets.list()] == ["of-client"]
        client.secrets.delete("of-client")
        with pytest.raises(NotFound):
            client.secrets.delete("of-client")
