"""What the processes of a training on a Ray cluster tell each other."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from services.child_input import ChildInput


class DriverInput(ChildInput):
    """Input of the driver of one attempt. All paths are on storage that every node has under the same path."""

    address: str
    """host:port of the cluster's head."""
    training_input: Path
    """The input of the trainer's child, in the folder where the attempt works."""
    reads: list[Path]
    """Files and folders outside of that folder that the child reads."""
    world_size: int = Field(ge=1)
    on_gpus: bool
    """Each process reserves one GPU."""
    threads: int = Field(ge=1)
    """CPUs that each process reserves."""
    environment: dict[str, str]
    """Environment of the child, beside what every child gets."""
    file_bytes: int
    memory_bytes: int
    """Limits of a child, as `ChildLimits` has them."""

    @property
    def workdir(self) -> Path:
        """Folder where the attempt works."""
        return self.training_input.parent


@dataclass(frozen=True)
class Began:
    """A process is about to start on a node."""

    number: int
    node_id: str
    address: str
    """Address of the node."""


@dataclass(frozen=True)
class Exited:
    """A process has exited, after everything that it sent."""

    number: int
    status: int
    """Exit status, negative for a signal."""
    ending: bytes | None
    """The event with which it ended, if it could say how."""
    out_of_memory: bool
    """The kernel killed a process of its container for memory meanwhile."""
    last_lines: tuple[str, ...]


Message = bytes | Began | Exited
"""Bytes are an event of the first process, or nothing: a sign of its life."""
