"""A job's configuration while it is resolved, with the reasons, warnings and refusals."""

from dataclasses import dataclass, field
from typing import Any

from engine.config.job import JobConfig
from engine.errors import JobError, Violation
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution


@dataclass(frozen=True)
class JobWarning:
    """A suspicious property of a job that does not refuse it."""

    reason: str
    message: str
    advice: str
    field: str = ""
    """Path in the spec; empty if the warning concerns several fields."""


@dataclass
class Resolved:
    """A job's configuration with its automatic settings resolved, the resolutions, the warnings and the refusals."""

    config: JobConfig
    resolutions: list[Resolution] = field(default_factory=list)
    warnings: list[JobWarning] = field(default_factory=list)
    refusals: list[JobError] = field(default_factory=list)
    """Every reason to refuse the job; collected, so that the caller gets all of them in one report."""

    def choose(self, path: str, value: Any, reason: str) -> None:
        """Sets the field at `path` (such as `hyperparameters.precision`) and records `reason` as its resolution."""
        section, _, name = path.rpartition(".")
        if section:
            inner = getattr(self.config, section).model_copy(update={name: value})
            self.config = self.config.model_copy(update={section: inner})
        else:
            self.config = self.config.model_copy(update={name: value})
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        self.resolutions.append(Resolution(field=path, value=shown, reason=reason))

    def warn(self, reason: str, message: str, advice: str, field: str = "") -> None:
        """Adds a warning."""
        self.warnings.append(JobWarning(reason, message, advice, field))

    def refuse(self, reason: str, path: str, message: str, advice: str) -> None:
        """Adds a refusal; `path` is the field at fault."""
        self.refusals.append(JobError(reason, message, advice, [Violation(f"spec.{path}", message)]))

    def raise_refusals(self) -> None:
        """Raises the first refusal with the violations of all refusals; returns if there is none."""
        if self.refusals:
            first = self.refusals[0]
            violations = [violation for refusal in self.refusals for violation in refusal.violations]
            raise JobError(first.reason, first.message, first.advice, violations)
