"""Protocols of exceptions that say whose fault an error is. Independent of gRPC: children use them too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


class FieldProblem(Protocol):
    """Any object that names an invalid field and describes the problem."""

    @property
    def field(self) -> str: ...
    @property
    def description(self) -> str: ...


@dataclass(frozen=True)
class Violation:
    """An invalid field."""

    field: str
    """Field path, such as `spec.hyperparameters.learning_rate`."""
    description: str
    """The fault of the value and how to correct it."""


@runtime_checkable
class CallerFault(Protocol):
    """An error that the caller can correct, whichever package defines the exception."""

    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def advice(self) -> str: ...
    @property
    def violations(self) -> Sequence[FieldProblem]: ...


@runtime_checkable
class LimitFault(CallerFault, Protocol):
    """A valid request that needs more than the installation allows."""

    @property
    def setting(self) -> str:
        """The setting with which the operator changes the limit."""


@runtime_checkable
class SystemFault(Protocol):
    """An error of the system, with a reason of its own. Test for CallerFault first: it has these attributes too."""

    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def advice(self) -> str: ...
