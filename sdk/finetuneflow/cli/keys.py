"""`ftf keys`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from finetuneflow.cli.advice import login_command
from finetuneflow.cli.console import error_console
from finetuneflow.cli.session import Json, not_empty, print_json, print_rows, session
from finetuneflow.cli.times import shown_time, time_from_now
from finetuneflow.resources.access import ApiKey

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")


@app.command()
def create(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Option(help="Name of the tenant. Default: yours.")] = "",
    role: Annotated[
        str | None, typer.Option(help="reader, member or operator. Default: member, or yours if that is lower.")
    ] = None,
    name: Annotated[str, typer.Option(help="Display name, such as who will use the key.")] = "",
    expires: Annotated[
        datetime | None,
        typer.Option(
            metavar="30d|DATE",
            parser=time_from_now,
            help="When the key stops working: after minutes, hours or days (90m, 12h, 30d), or on a date. Default: "
            "when yours does, or never if you are an operator.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again."""
    here = session(ctx)
    key = here.client.keys.create(tenant=tenant, role=role, display_name=name, expire_time=expires)
    if json:
        print_json(key.proto)
        return
    # The key alone is on stdout, so that a program can read it.
    typer.echo(key.token)
    end = f"expires {shown_time(key.expire_time)}" if key.expire_time else "never expires"
    error_console().print(
        f"\nThe key is shown this once. Its id is {key.id}, its tenant {key.tenant}, its role {key.role.lower()}; it "
        f"{end}.\nTo use it, run `{login_command(here.client.address)}` and enter it. Programs read it from FTF_TOKEN."
    )


@app.command("list")
def list_keys(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Option(help="Only keys of this tenant.")] = "",
    ended: Annotated[bool, typer.Option("--all", help="Also keys that were revoked or have expired.")] = False,
    json: Json = False,
) -> None:
    """List your key and those that it created, oldest first; an operator sees all keys."""
    here = session(ctx)
    keys = here.client.keys.list(tenant=tenant, include_ended=ended)
    if json:
        print_json(*(key.proto for key in keys))
    else:
        headers = ["ID", "TENANT", "ROLE", "STATE", "CREATED", "EXPIRES", "LAST USED", "CREATED BY", "NAME"]
        print_rows(here.console, headers, map(_row, keys))


@app.command()
def revoke(
    ctx: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY_ID", help="Id of the key.", callback=not_empty)],
    json: Json = False,
) -> None:
    """Revoke a key, and the keys that it created unless it is an operator's."""
    here = session(ctx)
    key = here.client.keys.revoke(key_id)
    if json:
        print_json(key.proto)
    else:
        here.console.print(f"Revoked {key.id}")


def _row(key: ApiKey) -> list[str]:
    return [
        key.id,
        key.tenant,
        key.role.lower(),
        _state(key),
        shown_time(key.create_time),
        shown_time(key.expire_time, "never"),
        shown_time(key.last_use_time, "never"),
        key.created_by,
        key.display_name,
    ]


def _state(key: ApiKey) -> str:
    if key.revoke_time is not None:
        return "revoked"
    return "expired" if key.expire_time is not None and key.expire_time <= datetime.now(UTC) else "active"
