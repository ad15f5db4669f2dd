"""`ftf doctor`."""

from __future__ import annotations

import json as json_module
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NamedTuple

import typer

from finetuneflow.cli.exits import UNREACHABLE
from finetuneflow.cli.session import Json, session
from finetuneflow.client import Client
from finetuneflow.errors import FineTuneFlowError


class Finding(NamedTuple):
    """One thing that was looked at; `ok` None is a fact that is neither good nor bad."""

    name: str
    ok: bool | None
    detail: str


def doctor(ctx: typer.Context, json: Json = False) -> None:
    """Look at the installation and the way to the server, part by part."""
    here = session(ctx)
    healthy = True
    for finding in _findings(here.client):
        healthy = healthy and finding.ok is not False
        if json:
            typer.echo(json_module.dumps(finding._asdict()))
        else:
            mark = {True: "ok", False: "FAILED", None: "-"}[finding.ok]
            here.console.print(f"{mark:7} {finding.name:14} {finding.detail}")
    if not healthy:
        raise typer.Exit(UNREACHABLE)


def _findings(client: Client) -> Iterator[Finding]:
    yield Finding("client", None, f"finetuneflow {version('finetuneflow')}, Python {platform.python_version()}")
    yield Finding("libraries", None, ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf")))
    yield _server_distribution()
    # Those of the server distribution, where it is installed: callables that yield (name, ok, detail).
    for entry_point in entry_points(group="finetuneflow.checks"):
        for check in entry_point.load()():
            yield Finding(*check)
    set_here = [name for name in ("FTF_ADDRESS", "FTF_TOKEN", "FTF_CA") if os.environ.get(name)]
    yield Finding("settings", None, f"set in the environment: {', '.join(set_here) or 'none'}")
    connects = _connects(client.address)
    yield connects
    if not connects.ok:
        return
    yield _asks("gateway", lambda: f"{len([*client.recipes.list()])} recipes")
    yield _asks("models", lambda: f"{len([*client.models.list()])} models")
    yield _asks("datasets", lambda: f"{len([*client.datasets.list(limit=1000)])} datasets")
    yield _asks("machines", lambda: ", ".join(h.node_id or "one" for h in client.probe.hardware()) or "no live node")


def _server_distribution() -> Finding:
    try:
        return Finding("server here", None, f"finetuneflow-server {version('finetuneflow-server')}")
    except PackageNotFoundError:
        return Finding("server here", None, "not installed; `ftf up` and `ftf demo` need it")


def _connects(address: str) -> Finding:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return Finding("connection", True, address)
    except OSError as error:
        return Finding(
            "connection", False, f"{address}: {error.strerror or error}. Is a server up? `ftf up` starts one"
        )


def _asks(name: str, question: Callable[[], str]) -> Finding:
    began = time.monotonic()
    try:
        answer = question()
    except FineTuneFlowError as error:
        return Finding(name, False, error.message)
    return Finding(name, True, f"{answer}, {(time.monotonic() - began) * 1000:.0f} ms")
