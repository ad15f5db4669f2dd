"""Preflight: the assessment of a job before it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetuneflow.resources.convert import Resource
from finetuneflow.resources.estimate import ResourceEstimate
from finetuneflow.resources.event import FieldViolation
from finetuneflow.resources.job import Resolution
from finetuneflow.resources.stage_result import PreflightResult
from finetuneflow.resources.validation import ProblemSeverity, ValidationReport, Verdict


@dataclass(frozen=True, kw_only=True)
class Finding(Resource):
    """An error or a warning about a job."""

    severity: ProblemSeverity | None
    """ERROR refuses the job; WARNING does not."""
    reason: str
    """The cause, one of `finetuneflow.Reason`: that of the failed preflight, such as INSUFFICIENT_MEMORY, or that of
    its warning event."""
    message: str
    """The finding in one sentence."""
    advice: str
    """Advice on how to fix the finding: the field or setting to change."""
    field: str
    """Path of the field concerned, such as `hyperparameters.warmup_steps`. Empty if several fields are concerned."""
    violations: tuple[FieldViolation, ...]
    """For an error: the invalid fields or rows, at most 50."""


@dataclass(frozen=True, kw_only=True)
class Improvement(Resource):
    """A change that would improve the job."""

    field: str
    """Field path in the spec, such as `hyperparameters.packing`."""
    current: str
    """Current value, in TOML notation."""
    suggested: str
    """Suggested value, in TOML notation."""
    reason: str
    """The reason, with the figures of this job."""


@dataclass(frozen=True, kw_only=True)
class PreflightReport(Resource):
    """Errors, warnings and suggested improvements of a job."""

    verdict: Verdict | None
    """Overall verdict. REFUSED: preflight would end the job. WARNINGS: the job would run."""
    findings: tuple[Finding, ...]
    """Errors first, then warnings about the job as a whole. Problems of single rows are in `validation`."""
    improvements: tuple[Improvement, ...]
    """Suggested changes, the most valuable first. The job runs without them."""
    validation: ValidationReport
    """Problems and statistics of the rows."""


@dataclass(frozen=True, kw_only=True)
class Preflight(Resource):
    """Result of `jobs.preflight`."""

    resolved_spec: dict[str, Any]
    """The spec with every field set. In the form that `jobs.create` takes."""
    resolutions: tuple[Resolution, ...]
    """Reason of each automatic value."""
    result: PreflightResult
    """Counts and warnings. Without the hash of the weights and the token shards, which are made when the job runs."""
    estimate: ResourceEstimate
    """Estimated memory, time, cost and disk. The speed is based on earlier trainings."""
    report: PreflightReport
    """Verdict, findings and suggested improvements."""

    @property
    def refused(self) -> bool:
        """True if preflight would end the job."""
        return self.report.verdict == Verdict.REFUSED
