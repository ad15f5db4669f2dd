"""`ftf integrations`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from finetuneflow.cli.session import Json, not_empty, print_deleted, print_json, print_rows, session, shortened
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.resources.integration import DeliveryAttempt, Integration, IntegrationState
from finetuneflow.v1.fine_tuning_job_spec_pb2 import IntegrationSpec

app = typer.Typer(no_args_is_help=True, help="Webhooks and trackers that follow jobs.")

HEADERS = ("ID", "KIND", "STATE", "LAST EVENT", "RUN", "URL", "LAST ERROR")
"""URL: that of the run at a tracker; before there is one, the address that is sent to."""

_JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job.", callback=not_empty)]
_Id = Annotated[str, typer.Argument(metavar="INTEGRATION", help="Id of the integration.", callback=not_empty)]


@app.command()
def add(
    ctx: typer.Context,
    job_id: _JobId,
    webhook: Annotated[str | None, typer.Option(metavar="URL", help="Send a signed request for each event.")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write event files of TensorBoard.")] = False,
    mlflow: Annotated[str | None, typer.Option(metavar="URL", help="Write a run on this MLflow server.")] = None,
    wandb: Annotated[bool, typer.Option("--wandb", help="Write a run at Weights & Biases.")] = False,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Secret with the key of the webhook or of Weights & Biases, or the token or password for MLflow.",
        ),
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Kind of events that the webhook gets. Repeatable.", show_default="state_changed"),
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Experiment of MLflow.", show_default="finetuneflow")] = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run.", show_default="the job's name")] = None,
    username: Annotated[str | None, typer.Option(help="User of MLflow, whose password is the secret.")] = None,
    project: Annotated[
        str | None, typer.Option(help="Project of Weights & Biases.", show_default="finetuneflow")
    ] = None,
    entity: Annotated[
        str | None, typer.Option(help="User or team of Weights & Biases.", show_default="that of the key")
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="API of Weights & Biases.", show_default="https://api.wandb.ai"),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Store a file for `wandb sync` with the job instead of sending.")
    ] = False,
    json: Json = False,
) -> None:
    """Add a webhook or a tracker to a job, which may have ended: it gets the whole history."""
    chosen: dict[str, dict[str, Any]] = {}
    if webhook is not None:
        chosen["webhook"] = {"url": webhook}
    if tensorboard:
        chosen["tensorboard"] = {}
    if mlflow is not None:
        chosen["mlflow"] = {"tracking_uri": mlflow}
    if wandb:
        chosen["wandb"] = {}
    if len(chosen) != 1:
        raise _invalid(Violation("--webhook, --tensorboard, --mlflow, --wandb", "set one of them"))
    ((service, settings),) = chosen.items()
    options = {
        "secret": secret,
        "kinds": kind or None,
        "experiment": experiment,
        "run_name": run_name,
        "username": username,
        "project": project,
        "entity": entity,
        "base_url": base_url,
        "offline": offline or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    known: Any = IntegrationSpec.DESCRIPTOR.fields_by_name[service].message_type
    foreign = [name for name in given if name not in known.fields_by_name]
    if foreign:
        raise _invalid(*(Violation(_option(name), f"is no setting of --{service}; remove it") for name in foreign))
    here = session(ctx)
    integration = here.client.integrations.create(job_id, {service: settings | given})
    if json:
        print_json(integration.proto)
    else:
        here.console.print(f"Added {integration.id}")


@app.command("list")
def list_integrations(ctx: typer.Context, job_id: _JobId, json: Json = False) -> None:
    """List the integrations of a job."""
    here = session(ctx)
    found = here.client.integrations.list(job_id)
    if json:
        print_json(*(each.proto for each in found))
    else:
        print_rows(here.console, HEADERS, map(row, found))


@app.command()
def retry(ctx: typer.Context, integration_id: _Id, json: Json = False) -> None:
    """Continue an integration that has failed, or waits for its next try, with the event that was not delivered."""
    here = session(ctx)
    integration = here.client.integrations.retry(integration_id)
    if json:
        print_json(integration.proto)
    elif integration.state == IntegrationState.RETRYING:
        here.console.print(f"{integration.id} {integration.state}")
    else:
        here.console.print(f"{integration.id} {integration.state}: nothing had to be retried.")


@app.command()
def delete(ctx: typer.Context, integration_id: _Id, json: Json = False) -> None:
    """End an integration and delete its log."""
    here = session(ctx)
    here.client.integrations.delete(integration_id)
    print_deleted(here.console, integration_id, as_json=json)


@app.command()
def log(
    ctx: typer.Context,
    integration_id: _Id,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Maximum number to list, newest first.")] = 100,
    json: Json = False,
) -> None:
    """List the latest tries to deliver, with their answers."""
    here = session(ctx)
    tries = here.client.integrations.attempts(integration_id, limit=limit)
    if json:
        print_json(*(each.proto for each in tries))
    else:
        print_rows(here.console, ["TRY", "TIME", "EVENTS", "STATUS", "SECONDS", "ERROR"], map(_try_row, tries))


def _invalid(*violations: Violation) -> InvalidArgument:
    return InvalidArgument("The integration is invalid.", violations=violations)


def _option(setting: str) -> str:
    return "--kind" if setting == "kinds" else f"--{setting.replace('_', '-')}"


def row(integration: Integration) -> list[str]:
    """The cells of an integration under HEADERS."""
    return [
        integration.id,
        integration.kind,
        integration.state,
        str(integration.delivered_sequence),
        integration.run_name,
        integration.run_url or _address(integration),
        shortened(integration.last_error),
    ]


def _address(integration: Integration) -> str:
    """Returns the address that an integration sends to, without credentials; empty if it sends nothing."""
    settings = integration.spec.get(integration.kind) or {}
    default = "https://api.wandb.ai" if integration.kind == "wandb" and not settings.get("offline") else ""
    url = settings.get("url") or settings.get("tracking_uri") or settings.get("base_url") or default
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _try_row(tried: DeliveryAttempt) -> list[str]:
    first, last = tried.first_sequence, tried.last_sequence
    events = "" if not first else str(first) if first == last else f"{first}-{last}"
    status = str(tried.http_status) if tried.http_status else ""
    seconds = f"{tried.duration_seconds:.2f}"
    return [str(tried.number), _time(tried.time), events, status, seconds, shortened(tried.error)]


def _time(time: datetime | None) -> str:
    return f"{time.astimezone():%Y-%m-%d %H:%M:%S}" if time else ""
