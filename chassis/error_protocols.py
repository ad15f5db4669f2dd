"""What is whose fault, apart from any gRPC status: children, which serve nothing, say it too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class FieldProblem(Protocol):
    """A field at fault. Anything with these two attributes will do."""

    @property
    def field(self) -> str: ...
    @property
    def description(self) -> str: ...


@dataclass(frozen=True)
class Violation:
    """A field at fault."""

    field: str
    """Field path, such as `spec.hyperparameters.learning_rate`."""
    description: str
    """What is wrong with it and how to mend it."""


@runtime_checkable
class CallerFault(Protocol):
    """What the caller can mend, in whichever package its exception was defined."""

    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def advice(self) -> str: ...
    @property
    def violations(self) -> Sequence[FieldProblem]: ...


@runtime_checkable
class SystemFault(Protocol):
    """What only we or time can mend, with a reason of its own. Ask for CallerFault first: it has all of this too."""

    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def advice(self) -> str: ...
