"""`ftf up`: runs a system in a home folder until a signal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path

from rich.console import Console

from finetuneflow.cli.advice import ftf
from finetuneflow.connection import DEFAULT_ADDRESS, is_loopback
from finetuneflow.credentials import Credentials, credentials_file, store_credentials
from finetuneflow.errors import InvalidArgument
from standalone import nats
from standalone.home import HomeTaken, default_home, held, holder, make_private
from standalone.listener import Listener
from standalone.ports import is_free
from standalone.stack import Stack


class PortTaken(Exception):
    """Another process listens on the gateway's port."""


class StatusPrinter:
    """Prints the status: sentences, or with `as_json` one JSON object per line on stdout, with a `state`."""

    def __init__(self, console: Console, *, as_json: bool) -> None:
        self._console = console
        self._as_json = as_json

    def state(self, state: str, text: str, **more: object) -> None:
        if self._as_json:
            # The program that reads this may have ended; that is no reason to stop.
            with contextlib.suppress(BrokenPipeError):
                print(json.dumps({"state": state, **more}), flush=True)  # noqa: T201 - read by a program
        else:
            self._console.print(text)

    def notice(self, text: str) -> None:
        self.state("notice", text, message=text)


async def run(home: Path, listener: Listener, report: StatusPrinter) -> None:
    """Runs a system in `home` until SIGINT, SIGTERM or SIGHUP; a second signal kills the processes without draining.

    Raises HomeTaken, PortTaken, NatsServerMissing, and StartFailed after everything was stopped.
    """
    _check(home, listener)
    # Rows, keys and logs are nobody else's business; the processes inherit it.
    os.umask(0o077)
    if make_private(home):
        report.notice(f"Other users of this machine could read {home}; its mode is now 0700.")
    with held(home, listener.local_address):
        stack = Stack(home, listener, report.notice)
        signalled = asyncio.Event()

        def on_signal() -> None:
            if signalled.is_set():
                report.state("killing", "Killing the remaining processes.")
                stack.kill()
            signalled.set()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, on_signal)
        starting = asyncio.create_task(stack.start())
        waiting = asyncio.create_task(signalled.wait())
        try:
            await asyncio.wait([starting, waiting], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                _store_credentials(stack, report)
                _print_address(stack, report)
                await waiting
            report.state(
                "stopping",
                "\nStopping after running trainings have written a checkpoint, and evaluations and exports have "
                "ended, for at most a minute: what is killed then starts again later, a training from its "
                "latest checkpoint. Ctrl-C kills them now.",
            )
        finally:
            starting.cancel()
            waiting.cancel()
            await asyncio.wait([starting, waiting])
            await stack.stop()
        report.state("stopped", "Stopped.")


def _check(home: Path, listener: Listener) -> None:
    """Raises the errors that can be found before anything is written."""
    by = holder(home)
    if by is not None:
        raise HomeTaken(home, by)
    port = listener.port
    if not is_free(port):
        again = f"up --port {port + 1}" + ("" if home == default_home() else f" --home {shlex.quote(str(home))}")
        raise PortTaken(f"Port {port} is in use. Choose another one: {ftf(again)}")
    nats.binary()


def _store_credentials(stack: Stack, report: StatusPrinter) -> None:
    """Stores the operator's key for the clients of this user on this machine."""
    ca = "system" if stack.listener.certificate else stack.authority_file.read_text("ascii")
    try:
        store_credentials(stack.address, Credentials(stack.operator_key_file.read_text("ascii").strip(), ca))
    except (OSError, InvalidArgument) as error:
        report.notice(f"Clients need FTF_TOKEN and FTF_CA, because the key could not be stored for them: {error}")


def _print_address(stack: Stack, report: StatusPrinter) -> None:
    listener = stack.listener
    option = "" if stack.address == DEFAULT_ADDRESS else f"--address {stack.address} "
    train = ftf(f"{option}train DATA.jsonl --model smollm2-135m --recipe cpu-demo")
    reach = "this machine only" if is_loopback(listener.listen) else "reachable from other machines"
    text = f"""
FineTuneFlow is up.

  Address  {stack.address}  (TLS; {reach})
  Key      {credentials_file()}  (clients of your user find it there)
  Home     {stack.home}
  Logs     {stack.logs}
  Next     {train}
"""
    if not is_loopback(listener.listen):
        ca = "" if listener.certificate else " --ca ca.pem"
        copied = "" if listener.certificate else f", and a copy of {stack.authority_file} as ca.pem"
        host = listener.names[-1] if listener.host in ("0.0.0.0", "::") else listener.host  # noqa: S104 - compared only
        text += f"""
Other machines need a key, which `{ftf("keys create")}` makes{copied}. There:

  {ftf(f"login {host}:{listener.port}{ca}")}
"""
    text += "\nPress Ctrl-C to stop it. Running jobs continue from their last checkpoint after the next start.\n"
    pids = {name: process.pid for name, process in stack.processes.items()}
    report.state(
        "up",
        text,
        address=stack.address,
        ca=str(stack.authority_file),
        home=str(stack.home),
        logs=str(stack.logs),
        pid=os.getpid(),
        processes=pids,
    )


def main(home: Path, listener: Listener, console: Console, *, as_json: bool) -> None:
    """Runs a system until a signal. Raises what `run` raises."""
    report = StatusPrinter(console, as_json=as_json)
    if sys.stdout.isatty() and not as_json:
        console.print("Starting ...")
    asyncio.run(run(home, listener, report))
