"""What a job would come to, before there is one."""

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
    """One thing that refuses a job (severity ERROR), or makes it doubtful."""

    severity: ProblemSeverity | None
    reason: str
    message: str
    advice: str
    field: str
    violations: tuple[FieldViolation, ...]


@dataclass(frozen=True, kw_only=True)
class Improvement(Resource):
    """A change that would make a job better."""

    field: str
    current: str
    suggested: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PreflightReport(Resource):
    """What refuses a job, what is doubtful, and what would be better; what was found in rows is in `validation`."""

    verdict: Verdict | None
    findings: tuple[Finding, ...]
    improvements: tuple[Improvement, ...]
    validation: ValidationReport


@dataclass(frozen=True, kw_only=True)
class Preflight(Resource):
    """What stage 1 would say of a job. `resolved_spec` is in the form that `jobs.create` takes."""

    resolved_spec: dict[str, Any]
    resolutions: tuple[Resolution, ...]
    result: PreflightResult
    estimate: ResourceEstimate
    report: PreflightReport

    @property
    def refused(self) -> bool:
        """True for a job that stage 1 would end."""
        return self.report.verdict == Verdict.REFUSED
