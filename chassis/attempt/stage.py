"""Interfaces that a service implements to run its work items as child processes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from pydantic import SecretStr

from chassis.child.child_process import ChildCommand
from chassis.child.spare import SpareCommand
from chassis.store.artifact_store import ArtifactStore, Stored
from finetuneflow.v1 import event_pb2, work_pb2


class Stage(Protocol):
    """The part of a service that turns a work item into a child process."""

    service: str

    async def prepare(
        self, assignment: work_pb2.Assignment, workdir: Path, store: ArtifactStore, secrets: Mapping[str, SecretStr]
    ) -> ChildCommand:
        """Downloads the child's inputs into `workdir`, which is empty, and returns how to start it.

        `secrets` are the job's, by name. They are for the downloads: nothing of them may reach the child or the disk.
        A CallerFault fails the job as an error of the user; any other exception is an error of the system, with the
        reason of a SystemFault where it is one.
        """
        ...


@runtime_checkable
class Finisher(Protocol):
    """A stage that completes its child's StageCompleted, after its files are stored and their paths filled in."""

    async def finish(
        self, assignment: work_pb2.Assignment, event: event_pb2.Event, workdir: Path, store: ArtifactStore
    ) -> event_pb2.Event:
        """Returns the completed event. It runs as `prepare` does: it may emit phases, a cancel ends it, and what it
        raises fails the attempt in the same way."""
        ...


@dataclass(frozen=True)
class Delivery:
    """A process that sends the output of an attempt to another system, such as a hub.

    It speaks the protocol of a child, but has the network and is not confined: it must not run users' data or models.
    """

    argv: Sequence[str]
    env: Mapping[str, str]
    """Added to the environment that every child gets."""
    secret: SecretStr
    """The first line of its control pipe: neither arguments, environment nor disk have it."""


@runtime_checkable
class Delivering(Protocol):
    """A stage that sends its output to another system before an attempt ends."""

    def secrets_of_delivery(self, assignment: work_pb2.Assignment) -> Collection[str]:
        """Returns the names of the secrets that are kept for `delivery` while the child runs."""
        ...

    def delivery(
        self,
        assignment: work_pb2.Assignment,
        completed: event_pb2.StageCompleted,
        stored: Mapping[str, Stored],
        command: ChildCommand,
        workdir: Path,
        secrets: Mapping[str, SecretStr],
    ) -> Delivery | None:
        """Returns how to deliver the output, or None if there is nothing to deliver.

        Called when the child has completed and every file that it named is stored; `stored` has them by their paths in
        the out_dir of `command`. The process may emit phases. The result of its StageCompleted is merged into that of
        the child; with its StageFailed the attempt fails, and what is stored stays. A pause takes effect after it, a
        cancel ends it.
        """
        ...


@runtime_checkable
class Sparing(Protocol):
    """A stage whose children have slow imports, which they can complete before they have an input."""

    def spare(self) -> SpareCommand | None:
        """Returns how to start a child that waits for its input; it should match what `prepare` usually returns. None
        if none of its children can wait."""
        ...
