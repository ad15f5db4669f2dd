"""The interface of the services that get the events of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway.sql.tables import SavedArtifact


class DeliveryFailed(Exception):
    """A try failed; the message has the reason, for the job's owner."""

    def __init__(self, message: str, *, said: str = "", http_status: int = 0, final: bool = False) -> None:
        """`said`: the server's own words, whole, which follow the message; they are masked before they are cut.
        `final`: another try would fail as well."""
        super().__init__(message)
        self.said = said
        self.http_status = http_status
        self.final = final


@dataclass(frozen=True)
class FollowedJob:
    """The job and the integration that a sink is opened for."""

    integration_id: str
    job_id: str
    tenant: str
    display_name: str
    create_time: int
    """Microseconds since 1970."""
    labels: dict[str, str]
    spec: FineTuningJobSpec
    """The settings, resolved if they are."""


@dataclass(frozen=True)
class TrackerRun:
    """The run at a tracker."""

    name: str = ""
    url: str = ""


class Sink(Protocol):
    """A service that is delivered to. Each method raises DeliveryFailed; then it is closed and another is made."""

    kinds: frozenset[str]
    """Kinds of events to deliver; empty: all."""
    batch: int
    """Maximum number of events of one `write`."""
    from_start: bool
    """True if each `open` begins anew, and gets the whole history again."""
    credentials: Sequence[str]
    """What the service is sent to prove who asks, in each form: these are masked in what it answers."""
    idle_seconds: float | None
    """After so long without events `write` is called with none, so that the service takes the job for running."""

    async def open(self) -> TrackerRun:
        """Connects, and creates the run if it does not exist."""
        ...

    async def write(self, events: Sequence[Event]) -> int:
        """Delivers events, in order. Returns the HTTP status, or 0. After a failure or a kill, they come again."""
        ...

    async def finish(self, state: str) -> Sequence[SavedArtifact]:
        """Ends the run of a job that has ended in this state. Returns artifacts of the job that it has stored."""
        ...

    async def close(self) -> None:
        """Frees what was opened; also called after a failure."""
        ...
