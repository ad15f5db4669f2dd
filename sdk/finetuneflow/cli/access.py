"""`ftf login`, `logout`, `whoami`, `keys`, `tenants` and `audit`."""

from __future__ import annotations

import json as json_module
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from finetuneflow.cli.advice import ftf
from finetuneflow.cli.exits import CommandFailed
from finetuneflow.cli.session import Json, Session, not_empty, print_json, print_rows, session
from finetuneflow.client import Client
from finetuneflow.connection import DEFAULT_ADDRESS, Connection
from finetuneflow.credentials import Credentials, read_credentials, remove_credentials, store_credentials
from finetuneflow.fields import INT32_MAX
from finetuneflow.resources.access import ApiKey, AuditEntry, Caller, Role, Tenant

_Address = Annotated[
    str | None, typer.Argument(metavar="[ADDRESS]", help="Server, host:port.", show_default=DEFAULT_ADDRESS)
]
_KEY_HEADERS = ["ID", "TENANT", "ROLE", "NAME", "CREATED", "EXPIRES", "REVOKED", "LAST USED"]
_TENANT_HEADERS = ["NAME", "DISPLAY NAME", "DISABLED", "CREATED", "LIMITS"]
_AUDIT_HEADERS = ["TIME", "TENANT", "KEY", "ADDRESS", "METHOD", "RESOURCE", "STATUS"]
_PERIOD = re.compile(r"(\d{1,5})([hdw])")
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def keys_app() -> typer.Typer:
    """Returns the command group `keys`."""
    app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
    app.command("create")(create_key)
    app.command("list")(list_keys)
    app.command("revoke")(revoke_key)
    return app


def tenants_app() -> typer.Typer:
    """Returns the command group `tenants`."""
    app = typer.Typer(no_args_is_help=True, help="Create, list and change tenants; for operators.")
    app.command("create")(create_tenant)
    app.command("list")(list_tenants)
    app.command("update")(update_tenant)
    return app


def login(
    ctx: typer.Context,
    address: _Address = None,
    ca: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="PEM file with the server's authority, or `system`. Default: stored."),
    ] = None,
    json: Json = False,
) -> None:
    """Store an API key for a server. It is asked for without being shown, or read from stdin."""
    here = session(ctx)
    chosen = address or here.address or Connection.resolve(None, "", "").address
    token = (typer.prompt("API key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()).strip()
    if not token:
        raise CommandFailed("No API key was given.", advice="Type it when asked, or send it to stdin.")
    trusted = _authority(chosen, ca)
    with Client(chosen, token=token, ca=trusted) as client:
        caller = client.keys.caller()
    for each in Connection(chosen).addresses:
        path = store_credentials(each, Credentials(token, trusted))
    if json:
        print_json(caller.proto)
        return
    here.console.print(f"{_described(caller)}. Stored in {path}.")


def logout(ctx: typer.Context, address: _Address = None, json: Json = False) -> None:
    """Remove the stored API key of a server. It stays valid: `ftf keys revoke` ends it."""
    here = session(ctx)
    chosen = address or here.address or Connection.resolve(None, "", "").address
    removed = [each for each in Connection(chosen).addresses if remove_credentials(each)]
    if not removed:
        raise CommandFailed(f"No key is stored for {chosen}.")
    if json:
        sys.stdout.write(json_module.dumps({"removed": removed}) + "\n")
    else:
        here.console.print(f"Removed the key of {', '.join(removed)}")


def whoami(ctx: typer.Context, json: Json = False) -> None:
    """Show who you are for the server: tenant, role and key."""
    here = session(ctx)
    caller = here.client.keys.caller()
    if json:
        print_json(caller.proto)
    else:
        here.console.print(_described(caller))


def create_key(
    ctx: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Tenant of the key. Default: yours.")] = None,
    role: Annotated[str | None, typer.Option(help="reader, member or operator. Default: member.")] = None,
    name: Annotated[str | None, typer.Option(help="Display name: who or what will use it.")] = None,
    expires: Annotated[
        str | None, typer.Option(help="End: 12h, 30d, 8w, or a date such as 2027-01-31. Default: never.")
    ] = None,
    json: Json = False,
) -> None:
    """Create an API key and print it. It cannot be shown again."""
    here = session(ctx)
    end = None if expires is None else _end(expires)
    created = here.client.keys.create(tenant=tenant, role=role, display_name=name, expire_time=end)
    if json:
        print_json(created.proto)
        return
    here.console.print(created.token)
    if here.console.is_terminal:
        here.console.print(
            f"\nIt is shown this once. Its user runs `{ftf('login')}` and pastes it, or sets FTF_TOKEN.\n"
            f"To end it: {ftf(f'keys revoke {created.key.id}')}"
        )


def list_keys(
    ctx: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Only keys of this tenant.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also keys that were revoked or have expired.")] = False,
    json: Json = False,
) -> None:
    """List API keys: all for operators, otherwise your own."""
    here = session(ctx)
    keys = here.client.keys.list(tenant=tenant, include_ended=all_)
    if json:
        print_json(*(key.proto for key in keys))
    else:
        print_rows(here.console, _KEY_HEADERS, map(_key_row, keys))


def revoke_key(
    ctx: typer.Context,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key.", callback=not_empty)],
    json: Json = False,
) -> None:
    """End a key, and the keys that it created unless it is an operator's."""
    here = session(ctx)
    # The key itself is easily pasted where its id belongs.
    key = here.client.keys.revoke(key_id.split("_")[1] if key_id.startswith("ftf_") and "_" in key_id[4:] else key_id)
    if json:
        print_json(key.proto)
    else:
        here.console.print(f"Revoked {key.id}")


def create_tenant(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="NAME", help="Letters a-z, digits and -.", callback=not_empty)],
    name: Annotated[str | None, typer.Option(help="Display name.")] = None,
    json: Json = False,
) -> None:
    """Create a tenant."""
    _show_tenant(session(ctx), session(ctx).client.tenants.create(tenant, display_name=name), as_json=json)


def list_tenants(ctx: typer.Context, json: Json = False) -> None:
    """List the tenants."""
    here = session(ctx)
    tenants = here.client.tenants.list()
    if json:
        print_json(*(tenant.proto for tenant in tenants))
    else:
        print_rows(here.console, _TENANT_HEADERS, map(_tenant_row, tenants))


def update_tenant(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Argument(metavar="NAME", help="Name of the tenant.", callback=not_empty)],
    name: Annotated[str | None, typer.Option(help="New display name.")] = None,
    disable: Annotated[
        bool | None, typer.Option("--disable/--enable", help="Refuse its keys, or let them work again.")
    ] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=NUMBER", help="Own limit, such as max_live_jobs=5; these replace all. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Change a tenant."""
    limits = None if not limit else dict(map(_limit, limit))
    here = session(ctx)
    changed = here.client.tenants.update(tenant, display_name=name, disabled=disable, limits=limits)
    _show_tenant(here, changed, as_json=json)


def audit(
    ctx: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Only calls of this tenant.")] = None,
    key: Annotated[str | None, typer.Option(help="Only calls with the key of this id.")] = None,
    resource: Annotated[str | None, typer.Option(help="Only calls about this job, dataset, artifact or key.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from then on: 12h, 30d, 8w ago, or a date.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, max=INT32_MAX, help="Maximum number, oldest first.")] = None,
    json: Json = False,
) -> None:
    """List who changed or downloaded what, oldest first; for operators."""
    here = session(ctx)
    after = None if since is None else _begin(since)
    entries = here.client.audit.list(tenant=tenant, key_id=key, resource=resource, after_time=after, limit=limit)
    if json:
        for entry in entries:
            print_json(entry.proto)
    else:
        print_rows(here.console, _AUDIT_HEADERS, map(_audit_row, entries))


def _authority(address: str, ca: str | None) -> str:
    """Returns what to trust: the text of the file, since the file may move; the stored one if none is given."""
    if ca is None:
        stored = next(filter(None, map(read_credentials, Connection(address).addresses)), Credentials())
        return Connection.resolve(address, "", None).ca or stored.ca
    if ca == "system":
        return ca
    try:
        return Path(ca).expanduser().read_text("ascii")
    except (OSError, ValueError) as error:
        raise CommandFailed(f"The CA file cannot be read: {error}") from error


def _described(caller: Caller) -> str:
    who = caller.key.display_name or caller.key.id if caller.key else caller.subject or "anybody"
    end = caller.key.expire_time if caller.key else None
    until = f", until {end.astimezone():%Y-%m-%d %H:%M}" if end else ""
    return f"{who}: {Role(caller.role).lower()} of tenant {caller.tenant}{until}"


def _end(text: str) -> datetime:
    period = _PERIOD.fullmatch(text)
    return datetime.now(UTC) + int(period[1]) * _UNITS[period[2]] if period else _date(text, "--expires")


def _begin(text: str) -> datetime:
    period = _PERIOD.fullmatch(text)
    return datetime.now(UTC) - int(period[1]) * _UNITS[period[2]] if period else _date(text, "--since")


def _date(text: str, option: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(f"{option} must be a period such as 30d or a date such as 2027-01-31.") from error


def _limit(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.isascii() or not number.isdecimal():
        raise typer.BadParameter(f"--limit must be a name and a whole number, such as max_live_jobs=5, not {text!r}.")
    return name, int(number)


def _show_tenant(here: Session, tenant: Tenant, *, as_json: bool) -> None:
    if as_json:
        print_json(tenant.proto)
    else:
        print_rows(here.console, _TENANT_HEADERS, [_tenant_row(tenant)])


def _tenant_row(tenant: Tenant) -> list[str]:
    given = vars(tenant.limits) if tenant.limits else {}
    limits = ", ".join(f"{name}={value:,}" for name, value in given.items() if isinstance(value, int))
    return [tenant.name, tenant.display_name, "yes" if tenant.disabled else "", _time(tenant.create_time), limits]


def _key_row(key: ApiKey) -> list[str]:
    times = map(_time, (key.create_time, key.expire_time, key.revoke_time, key.last_use_time))
    return [key.id, key.tenant, Role(key.role).lower(), key.display_name, *times]


def _audit_row(entry: AuditEntry) -> list[str]:
    time = f"{entry.time.astimezone():%Y-%m-%d %H:%M:%S}" if entry.time else ""
    who = entry.key_id or entry.subject
    return [time, entry.tenant, who, entry.address, entry.method, entry.resource, entry.status]


def _time(moment: datetime | None) -> str:
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else ""
