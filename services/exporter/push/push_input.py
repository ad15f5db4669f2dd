"""Input of the process that pushes a package, which it reads from a file. It has no secrets."""

from collections.abc import Sequence

from pydantic import Field

from services.child_input import ChildInput, Strict

RETRY_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Delays before the push is tried again. The hub's client repeats single requests by itself, too."""


class PackageFile(Strict):
    """A file of the package that was stored."""

    name: str
    """Its path in the package and in the repository."""
    sha256: str
    size_bytes: int


class PushInput(ChildInput):
    """One push."""

    files: list[PackageFile]
    repo_id: str
    private: bool
    revision: str
    commit_message: str
    retry_seconds: Sequence[float] = Field(default=RETRY_SECONDS)
