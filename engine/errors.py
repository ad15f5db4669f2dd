"""What a caller can mend, and what only we or time can, raised by everything under `engine`."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Violation:
    """One thing wrong with one field or row.

    `field` is a path of the spec (`spec.hyperparameters.learning_rate`) or a place in the data
    (`training_data[0] row 17`); `description` says what is wrong with it and how to mend it.
    """

    field: str
    description: str


class JobError(Exception):
    """A job, a spec or data that cannot be worked on until the caller changes something.

    It becomes INVALID_ARGUMENT where a call is answered, and a failure with fault USER_ERROR where a stage runs:
    it is never retried. `reason` is UPPER_SNAKE_CASE and stable; `advice` says what to change, and where.
    """

    def __init__(self, reason: str, message: str, advice: str = "", violations: Sequence[Violation] = ()) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.advice = advice
        self.violations = tuple(violations)

    def __reduce__(self) -> tuple[type["JobError"], tuple[str, str, str, tuple[Violation, ...]]]:
        return JobError, (self.reason, self.message, self.advice, self.violations)


class SystemFailure(Exception):
    """Something that a job needs is out of reach or used up; nothing about the job is wrong.

    It becomes UNAVAILABLE where a call is answered, and a failure with fault SYSTEM_ERROR where a stage runs: it is
    tried again. `reason` is UPPER_SNAKE_CASE and stable; `advice` says what helps if it lasts.
    """

    def __init__(self, reason: str, message: str, advice: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.advice = advice
