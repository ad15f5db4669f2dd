"""Limits of a tenant, set with the SDK and with `ftf`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from finetuneflow import Client
from finetuneflow.errors import AlreadyExists, InvalidArgument
from tests.access.conftest import Tokens
from tests.access.gateway import AccessGateway


@pytest.fixture
def operator(access_gateway: AccessGateway, tokens: Tokens) -> Iterator[Client]:
    with Client(access_gateway.address, token=tokens.operator) as client:
        yield client


def test_tenants_have_limits_of_their_own(operator: Client) -> None:
    operator.tenants.create("limited", display_name="Limited")
    changed = operator.tenants.update("limited", limits={"max_live_jobs": 1}, disabled=False)
    assert changed.limits is not None
    assert changed.limits.max_live_jobs == 1
    assert changed.limits.max_datasets is None
    assert operator.tenants.get("limited").display_name == "Limited"
    with pytest.raises(InvalidArgument, match="max_live_jobs"):
        operator.tenants.update("limited", limits={"max_live_job": 1})
    with pytest.raises(InvalidArgument):
        operator.tenants.update("limited", limits={"max_live_jobs": -1})
    with pytest.raises(AlreadyExists):
        operator.tenants.create("limited")


@pytest.mark.parametrize(
    ("option", "code"), [("max_live_jobs=5", 0), ("max_live_jobs", 2), ("max_jobs=5", 2), ("max_live_jobs=-1", 2)]
)
def test_limits_are_set_by_the_command(access_gateway: AccessGateway, tokens: Tokens, option: str, code: int) -> None:
    arguments = ["tenants", "update", "globex", "--limit", option, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "finetuneflow.cli", "--address", access_gateway.address, *arguments],
        env=os.environ | {"FTF_TOKEN": tokens.operator},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    if code == 0:
        assert json.loads(done.stdout)["limits"] == {"max_live_jobs": "5"}
    else:
        assert "max_live_jobs" in done.stderr
