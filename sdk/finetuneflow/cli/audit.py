"""`ftf audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from finetuneflow.cli.session import Json, print_json, print_rows, session
from finetuneflow.cli.times import time_before_now
from finetuneflow.resources.access import AuditEntry


def audit(
    ctx: typer.Context,
    tenant: Annotated[str, typer.Option(help="Only calls of this tenant.")] = "",
    key: Annotated[str, typer.Option(help="Only calls with the key with this id.")] = "",
    resource: Annotated[str, typer.Option(help="Only calls about the resource with this id.")] = "",
    since: Annotated[
        datetime | None,
        typer.Option(
            metavar="30d|DATE",
            parser=time_before_now,
            help="Only calls from this time on: minutes, hours or days ago (90m, 12h, 30d), or a date. Default: all.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """List who called what on which resource, oldest first. For operators. `--json` exports it."""
    here = session(ctx)
    entries = here.client.audit.list(tenant=tenant, key_id=key, resource=resource, after_time=since)
    if json:
        for entry in entries:
            print_json(entry.proto)
    else:
        headers = ["TIME", "TENANT", "CALLER", "ADDRESS", "METHOD", "RESOURCE", "STATUS"]
        print_rows(here.console, headers, map(_row, entries))


def _row(entry: AuditEntry) -> list[str]:
    time = f"{entry.time.astimezone():%Y-%m-%d %H:%M:%S}" if entry.time else ""
    caller = entry.key_id or entry.subject
    return [time, entry.tenant, caller, entry.address, entry.method, entry.resource, entry.status]
