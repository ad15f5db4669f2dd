"""Webhooks and trackers that follow jobs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from finetuneflow.resources.convert import OpenEnum, Resource


class IntegrationState(OpenEnum):
    """State of an integration."""

    PENDING = "PENDING"
    """No delivery process has taken it. If that lasts, the operator runs none."""
    ACTIVE = "ACTIVE"
    """Events are delivered as they are accepted."""
    RETRYING = "RETRYING"
    """The latest try failed; it is repeated after a delay."""
    DONE = "DONE"
    """The job has ended and everything was delivered."""
    FAILED = "FAILED"
    """Given up: the service refused for good, or the last try failed. `client.integrations.retry` continues it."""


@dataclass(frozen=True, kw_only=True)
class Integration(Resource):
    """A service that follows a job: it gets the job's accepted events, in order and from the first one."""

    id: str
    """`int_` followed by 26 characters; ids sort by creation time."""
    job_id: str
    """Id of the job that it follows."""
    spec: dict[str, Any]
    """The settings, as `client.integrations.create` takes them."""
    kind: str
    """Kind of the service: webhook, tensorboard, mlflow or wandb."""
    state: IntegrationState
    """Current state."""
    run_name: str
    """Name of the run at the tracker. Empty for webhooks, and before the run exists."""
    run_url: str
    """Address of the run at the tracker. Empty if it has none."""
    delivered_sequence: int
    """Sequence of the last event that was delivered, or that the integration does not select; 0 before the first."""
    failures: int
    """Failures of the current event in a row; 0 after a success."""
    last_error: str
    """Cause of the latest failure in one sentence. Empty after a success."""
    create_time: datetime | None
    """Time at which the integration was created."""
    update_time: datetime | None
    """Time of the last change."""
    end_time: datetime | None
    """Time at which it was DONE or FAILED. None before."""


@dataclass(frozen=True, kw_only=True)
class DeliveryAttempt(Resource):
    """One try to deliver."""

    number: int
    """Number of the try in its integration, from 1."""
    first_sequence: int
    """Sequence of the first event that was sent; 0 if the try failed before, such as at the connection to a tracker."""
    last_sequence: int
    """Sequence of the last event that was sent."""
    time: datetime | None
    """Time at which the try began."""
    duration_seconds: float
    """Duration in seconds."""
    http_status: int
    """HTTP status of the answer; 0 if there was none."""
    error: str
    """The failure in one sentence. Empty for a success."""
