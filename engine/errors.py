"""Errors of the engine: those that the caller can correct, and failures of the system."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Violation:
    """One problem of one field or row.

    `field` is a path in the spec (`spec.hyperparameters.learning_rate`) or a place in the data
    (`training_data[0] row 17`). `description` states the problem and how to correct it.
    """

    field: str
    description: str


def encodable(text: str) -> str:
    """Returns the text with escapes instead of halves of surrogate pairs. JSON and templates can spell them, errors
    quote them, and no message can hold them."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class JobError(Exception):
    """A job, spec or dataset that the caller must correct.

    In a call it becomes INVALID_ARGUMENT; in a stage, a failure with fault USER_ERROR, which is never retried.
    `reason` is UPPER_SNAKE_CASE and stable. `advice` tells what to change.
    """

    def __init__(self, reason: str, message: str, advice: str = "", violations: Sequence[Violation] = ()) -> None:
        self.message = encodable(message)
        super().__init__(self.message)
        self.reason = reason
        self.advice = encodable(advice)
        self.violations = tuple(Violation(encodable(each.field), encodable(each.description)) for each in violations)

    def __reduce__(self) -> tuple[Any, ...]:
        return JobError, (self.reason, self.message, self.advice, self.violations)


class LimitExceeded(JobError):
    """A job or request that is valid but needs more than the installation allows.

    In a call it becomes RESOURCE_EXHAUSTED. `setting` names the setting with which the operator changes the limit.
    """

    def __init__(
        self, reason: str, message: str, advice: str, setting: str, violations: Sequence[Violation] = ()
    ) -> None:
        super().__init__(reason, message, f"{advice} The operator can raise {setting}.", violations)
        self.setting = setting
        self._advice = advice

    def __reduce__(self) -> tuple[Any, ...]:
        return LimitExceeded, (self.reason, self.message, self._advice, self.setting, self.violations)


class SystemFailure(Exception):
    """A resource that a job needs is unreachable or exhausted; the job itself is valid.

    In a call it becomes UNAVAILABLE; in a stage, a failure with fault SYSTEM_ERROR, which is retried. `reason` is
    UPPER_SNAKE_CASE and stable. `advice` tells what to do if the failure persists.
    """

    def __init__(self, reason: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.advice = advice
