"""`ftf tenants`."""

from __future__ import annotations

from typing import Annotated

import typer

from finetuneflow.cli.session import Json, not_empty, print_json, print_rows, session
from finetuneflow.cli.times import shown_time
from finetuneflow.resources.access import Tenant

app = typer.Typer(no_args_is_help=True, help="Create, list and change tenants. For operators.")

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the tenant.", callback=not_empty)]


@app.command()
def create(
    ctx: typer.Context,
    tenant: _Name,
    name: Annotated[str, typer.Option(help="Display name.")] = "",
    json: Json = False,
) -> None:
    """Create a tenant: 1 to 40 characters of a-z, 0-9 and -, starting with a letter."""
    _show(ctx, session(ctx).client.tenants.create(tenant, display_name=name), json)


@app.command("list")
def list_tenants(ctx: typer.Context, json: Json = False) -> None:
    """List the tenants, ordered by name."""
    here = session(ctx)
    tenants = here.client.tenants.list()
    if json:
        print_json(*(tenant.proto for tenant in tenants))
    else:
        print_rows(here.console, _HEADERS, map(_row, tenants))


@app.command()
def update(
    ctx: typer.Context,
    tenant: _Name,
    disable: Annotated[
        bool | None,
        typer.Option(
            "--disable/--enable", help="Refuse the tenant's keys and end their streams, or accept them again."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="New display name.")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=NUMBER", help="Own limit, such as max_live_jobs=5; these replace all. Repeatable."),
    ] = None,
    json: Json = False,
) -> None:
    """Disable, enable, rename or limit a tenant. Its jobs keep running."""
    if disable is None and name is None and not limit:
        raise typer.BadParameter("give --disable, --enable, --name or --limit.")
    limits = dict(map(_limit, limit)) if limit else None
    tenants = session(ctx).client.tenants
    _show(ctx, tenants.update(tenant, display_name=name, disabled=disable, limits=limits), json)


_HEADERS = ["TENANT", "STATE", "CREATED", "NAME", "LIMITS"]


def _limit(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not (number.isascii() and number.isdecimal()):
        raise typer.BadParameter(f"--limit must be a name and a whole number, such as max_live_jobs=5, not {text!r}.")
    return name, int(number)


def _show(ctx: typer.Context, tenant: Tenant, json: bool) -> None:
    if json:
        print_json(tenant.proto)
    else:
        print_rows(session(ctx).console, _HEADERS, [_row(tenant)])


def _row(tenant: Tenant) -> list[str]:
    state = "disabled" if tenant.disabled else "active"
    given = vars(tenant.limits) if tenant.limits else {}
    limits = ", ".join(f"{name}={value:,}" for name, value in given.items() if isinstance(value, int))
    return [tenant.name, state, shown_time(tenant.create_time), tenant.display_name, limits]
