"""`ftf` against the fake gateway of the SDK's tests."""

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from finetuneflow.cli.app import build_app
from tests.fakes.gateway import Running
from tests.sdk.conftest import client, gateway, server

__all__ = ["client", "ftf", "gateway", "server"]

Ftf = Callable[..., Result]


@pytest.fixture
def ftf(server: Running, monkeypatch: pytest.MonkeyPatch) -> Ftf:
    """Runs one command line, its output in a pipe."""
    monkeypatch.setenv("FTF_ADDRESS", server.address)
    # Usage errors are drawn in a box as wide as the terminal: a path that is wrapped compares with nothing.
    monkeypatch.setenv("COLUMNS", "1000")
    monkeypatch.setenv("TERM", "dumb")
    runner = CliRunner()
    return lambda *arguments: runner.invoke(build_app(), [str(argument) for argument in arguments])
