"""A file, folder or text that somebody made to do harm, and what has to become of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Write = Callable[[Path], Any]
"""Writes an artifact into an empty folder. Beside the folder is `outside`, with a file `secret`."""
Check = Callable[[Path], Any]
"""Does with the artifact in a folder what the system does. Returns the reasons for which parts of it are refused, if
any, or raises the error of a refusal."""

ACCEPTED = ""


@dataclass(frozen=True)
class Artifact:
    """`expected`: the reasons for which it is refused, sorted; ACCEPTED if it has to be harmless."""

    name: str
    write: Write
    check: Check
    expected: str
    seconds: float = 1.0
    """Maximum processor time of the check."""
    mib: int = 256
    """Maximum growth of the memory of the process that checks it."""
    alone: bool = False
    """True if the check may end its process."""
    long: bool = False
    """True if making or checking it takes too long for `make test`."""


@dataclass(frozen=True)
class Family:
    """Artifacts of one kind. The first one is ordinary and is accepted: otherwise the refusals would mean nothing."""

    name: str
    artifacts: tuple[Artifact, ...]

    def __post_init__(self) -> None:
        names = [artifact.name for artifact in self.artifacts]
        assert len(set(names)) == len(names), sorted(name for name in names if names.count(name) > 1)
        assert self.artifacts[0].expected == ACCEPTED


def outside_of(folder: Path) -> Path:
    """Returns the folder beside an artifact that nothing may open."""
    return folder.parent / "outside"


def home_of(folder: Path) -> Path:
    """Returns the folder beside an artifact that its check may write to."""
    return folder.parent / "home"
