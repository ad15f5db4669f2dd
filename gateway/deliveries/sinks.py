"""The interface of the services that get the events of a job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from chassis.store.artifact_store import Stored
from finetuneflow.v1.event_pb2 import Event
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from gateway.identifiers import new_id
from gateway.sql.tables import SavedArtifact, now


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
    """The settings: the resolved ones, or those that were sent until preflight has resolved them."""


@dataclass(frozen=True)
class TrackerRun:
    """The run at a tracker."""

    name: str = ""
    url: str = ""


def artifact_of(job: FollowedJob, name: str, kind: str, path: str, stored: Stored) -> SavedArtifact:
    """Returns the artifact of a file that a sink has stored for a job; `path` is that below the tenant's folder."""
    return SavedArtifact(
        id=new_id("ar"),
        tenant=job.tenant,
        work_id=job.job_id,
        name=f"integrations/{name}",
        kind=kind,
        path=path,
        sha256=stored.sha256,
        size_bytes=stored.size_bytes,
        media_type="application/octet-stream",
        create_time=now(),
    )


class Sink(Protocol):
    """A service that is delivered to. Each method raises DeliveryFailed; then it is closed and another is made."""

    kinds: frozenset[str]
    """Kinds of events to deliver; empty: all."""
    batch: int
    """Maximum number of events of one `write`."""
    from_start: bool
    """True if each `open` begins anew, and gets the whole history again."""
    credentials: Sequence[str]
    """Keys and passwords in each form in which they are sent. They are masked in texts that the service answers."""
    idle_seconds: float | None
    """Seconds without events after which `write` is called with none, so that the service shows the job as running."""

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
