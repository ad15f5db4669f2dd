"""`ftf doctor`."""

from __future__ import annotations

import json as json_module
import os
import platform
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import NamedTuple

import typer

from finetuneflow import __version__
from finetuneflow.cli.advice import LOOPBACK, as_typed, ftf, new_key_advice
from finetuneflow.cli.exits import UNREACHABLE
from finetuneflow.cli.login import expiry, identity
from finetuneflow.cli.session import Json, count, session
from finetuneflow.client import Client
from finetuneflow.errors import FineTuneFlowError, Unauthenticated, Unimplemented


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    """Name of the check."""
    ok: bool | None
    """True if the check passed, False if it failed, None for a plain fact."""
    detail: str
    """The fact, or the problem and how to fix it."""


def doctor(ctx: typer.Context, json: Json = False) -> None:
    """Check the installation and the connection to the server."""
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
    yield Finding("client", None, f"finetuneflow {__version__}, Python {platform.python_version()}")
    yield Finding("libraries", None, ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf")))
    yield _server_distribution()
    # The checks of the server distribution, if it is installed: callables that yield (name, ok, detail).
    for entry_point in entry_points(group="finetuneflow.checks"):
        for check in entry_point.load()():
            yield Finding(*check)
    # Names only: some values are secrets.
    set_here = sorted(name for name, value in os.environ.items() if name.startswith("FTF_") and value)
    yield Finding("settings", None, f"environment variables: {', '.join(set_here) or 'none'}")
    connections = [_connects(address) for address in client.address.split(",") if address.strip()]
    yield from connections
    if not any(connection.ok for connection in connections):
        return
    you = _you(client)
    yield you
    if you.ok is False:
        return
    yield _asks("gateway", lambda: count(len([*client.recipes.list()]), "recipe"))
    yield _asks("models", lambda: count(len([*client.models.list()]), "model"))
    yield _asks("datasets", lambda: _at_most(client.datasets.list(limit=1001), "dataset"))
    yield _asks("machines", lambda: _nodes(client))


def _server_distribution() -> Finding:
    try:
        return Finding("server here", None, f"finetuneflow-server {version('finetuneflow-server')}")
    except PackageNotFoundError:
        return Finding("server here", None, "not installed; `ftf up` and `ftf demo` need it")


def _at_most(items: Iterable[object], noun: str) -> str:
    number = sum(1 for _ in items)
    return f"more than 1,000 {noun}s" if number > 1000 else count(number, noun)


def _nodes(client: Client) -> str:
    names = [hardware.node_id for hardware in client.probe.hardware()]
    return f"{count(len(names), 'live node')}: {', '.join(names)}" if names else "no live node"


def _connects(address: str) -> Finding:
    host, _, port = address.strip().rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=5):
            return Finding("connection", True, address)
    except OSError as error:
        start = f"start a server with `{ftf('up')}`" if host in LOOPBACK else "check that a server runs there"
        problem = f"{address}: {error.strerror or error}; {start}"
        return Finding("connection", False, problem)


def _you(client: Client) -> Finding:
    try:
        caller = client.keys.caller()
    except Unauthenticated as error:
        said = (error.message, f"[{error.reason}]", new_key_advice(error.message))
        return Finding("you", False, as_typed(" ".join(filter(None, said))))
    except Unimplemented:
        return Finding("you", None, "this server is of a version without keys")
    except FineTuneFlowError as error:
        return Finding("you", False, error.message)
    end = f", expires {expiry(caller)}" if expiry(caller) else ""
    return Finding("you", True, f"tenant {caller.tenant}, role {caller.role.lower()}, key {identity(caller)}{end}")


def _asks(name: str, question: Callable[[], str]) -> Finding:
    began = time.monotonic()
    try:
        answer = question()
    except FineTuneFlowError as error:
        return Finding(name, False, error.message)
    return Finding(name, True, f"{answer}, {(time.monotonic() - began) * 1000:.0f} ms")
