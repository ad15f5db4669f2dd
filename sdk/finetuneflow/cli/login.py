"""`ftf login`, `ftf logout` and `ftf whoami`."""

from __future__ import annotations

import getpass
import json as json_module
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.advice import ADDRESS, LOOPBACK
from finetuneflow.cli.console import error_console
from finetuneflow.cli.exits import CommandFailed
from finetuneflow.cli.session import Json, Session, print_json, print_rows, session
from finetuneflow.cli.times import shown_time
from finetuneflow.client import Client
from finetuneflow.connection import DEFAULT_ADDRESS, Connection
from finetuneflow.credentials import (
    Credentials,
    credentials_file,
    read_credentials,
    remove_credentials,
    store_credentials,
)
from finetuneflow.errors import ServerUnreachable
from finetuneflow.resources.access import Caller

_Address = Annotated[
    str | None, typer.Argument(metavar="ADDRESS", help="Address of the server, host:port. Default: --address.")
]
_SYSTEM = "system"
"""The machine's own certificate authorities."""
_CERTIFICATE = re.compile("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)


def login(
    ctx: typer.Context,
    address: _Address = None,
    ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            envvar="FTF_CA",
            help="PEM file with the server's certificate authority, or `system`. Default: the one that is stored for "
            "the server; otherwise none for this machine, and `system` for others.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Store a key for a server, after the server has accepted it.

    The key is asked for, or read from stdin if that is not a terminal.
    """
    here = session(ctx)
    address, addresses = _addresses(here, address)
    authority = _authority(addresses, ca)
    token = _read_key(address)
    with Client(address, token=token, ca=authority) as client:
        try:
            caller = client.keys.caller()
        except ServerUnreachable as error:
            if ca is None:
                error.advice += "\nIf the server has a certificate authority of its own, name its file with --ca."
            raise
    for each in addresses:
        store_credentials(each, Credentials(token, authority))
    if json:
        print_json(caller.proto)
        return
    here.console.print(f"The key for {address} is stored in {credentials_file()}.")
    _print_caller(here, caller)
    if os.environ.get("FTF_TOKEN"):
        error_console().print("FTF_TOKEN is set: commands use it and not the stored key. Unset it.")


def logout(ctx: typer.Context, address: _Address = None, json: Json = False) -> None:
    """Remove the stored key of a server from this machine. The key itself remains valid."""
    here = session(ctx)
    address, addresses = _addresses(here, address)
    removed = [each for each in addresses if remove_credentials(each)]
    if json:
        typer.echo(json_module.dumps({"address": address, "removed": bool(removed)}))
    elif removed:
        here.console.print(f"The key for {address} is removed from {credentials_file()}. It is not revoked.")
    else:
        here.console.print(f"No key is stored for {address}.")


def whoami(ctx: typer.Context, json: Json = False) -> None:
    """Show the tenant, the role and the key with which the server sees you."""
    here = session(ctx)
    caller = here.client.keys.caller()
    if json:
        print_json(caller.proto)
    else:
        _print_caller(here, caller)


def identity(caller: Caller) -> str:
    """Names the key, or the subject at the identity provider."""
    if caller.key is not None:
        return caller.key.id
    return caller.subject or "none (this server asks for no keys)"


def expiry(caller: Caller) -> str:
    """Returns when the caller's key expires; of a token of an identity provider only its issuer knows it."""
    return shown_time(caller.key.expire_time, "never") if caller.key is not None else ""


def _print_caller(here: Session, caller: Caller) -> None:
    name = caller.key.display_name if caller.key is not None else ""
    row = [caller.tenant, caller.role.lower(), identity(caller), name, expiry(caller)]
    print_rows(here.console, ["TENANT", "ROLE", "KEY", "NAME", "EXPIRES"], [row])


def _addresses(here: Session, given: str | None) -> tuple[str, tuple[str, ...]]:
    address = given or here.address or DEFAULT_ADDRESS
    # Advice names the server of this command.
    ADDRESS.set(address)
    return address, Connection(address).addresses


def _authority(addresses: tuple[str, ...], ca: str | None) -> str:
    """Returns the text of the authority's certificate, so that the file may be moved."""
    if ca is None:
        stored = next(filter(None, map(read_credentials, addresses)), None)
        if stored is not None:
            return stored.ca
        local = all(address.rpartition(":")[0] in (*LOOPBACK, "[::1]") for address in addresses)
        return "" if local else _SYSTEM
    if ca in ("", _SYSTEM) or ca.startswith("-----BEGIN"):
        return ca
    # Only the certificates: a private key beside them has no place in another file.
    certificates = _CERTIFICATE.findall(Path(ca).expanduser().read_text("ascii", "replace"))
    if not certificates:
        raise CommandFailed(f"{ca} has no certificate in PEM format.")
    return "\n".join([*certificates, ""])


def _read_key(address: str) -> str:
    text = getpass.getpass(f"Key for {address}: ") if sys.stdin.isatty() else sys.stdin.readline()
    token = text.strip()
    # Nothing else can be sent in the metadata of a call.
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise CommandFailed(
            "A key is one line of ASCII characters without spaces." if token else "No key was given.",
            advice="An operator makes a key with `ftf keys create`.",
        )
    return token
