"""Stage 1 of a job that is only thought of: a probe's answer, with what only a gateway knows filled in."""

from typing import Any

import grpc

from chassis.errors import InvalidArgument, Violation
from engine.catalogue import Catalogue
from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.preflight_pb2 import PreflightReport
from finetuneflow.v1.probe_service_pb2_grpc import ProbeServiceStub
from finetuneflow.v1.validation_pb2 import ProblemSeverity, ValidationVerdict
from gateway import views
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.specs import check_datasets, check_spec
from gateway.sql.database import Database
from gateway.tenancy import tenant_of

_MAX_VIOLATIONS, _MAX_DESCRIPTION = 10, 160
"""A status travels in a header; the whole is in the report that PreflightFineTuningJob answers with."""

Context = grpc.aio.ServicerContext[Any, Any]


class Preflights:
    """Asks probes, for whichever method wants to know."""

    def __init__(
        self, database: Database, passthrough: Passthrough, machines: PlanningTargets, catalogue: Catalogue
    ) -> None:
        self._database = database
        self._passthrough = passthrough
        self._machines = machines
        self._catalogue = catalogue

    async def ask(
        self, request: api.PreflightFineTuningJobRequest, context: Context
    ) -> api.PreflightFineTuningJobResponse:
        """Raises what Create refuses before there is a job, and Unavailable where no probe can be reached."""
        check_spec(request.spec, self._catalogue)
        request.tenant = tenant_of(context)
        async with self._database.read() as session:
            rows = await check_datasets(session, request.tenant, request.spec)
        # A probe asks no database, and must not read another tenant's.
        del request.datasets[:]
        request.datasets.extend(map(views.dataset, rows))
        await self._machines.fill_in(request)
        answer: api.PreflightFineTuningJobResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).PreflightFineTuningJob, request, context, request.node_id
        )
        await self._doubt_pool(request.spec.resources.pool or "default", answer.report)
        return answer

    async def _doubt_pool(self, pool: str, report: PreflightReport) -> None:
        """A job waits for a trainer for as long as it takes, which looks as if nothing happened."""
        nodes = await self._passthrough.nodes()
        if any(node.service == "trainer" and node.pool == pool and not node.draining for node in nodes):
            return
        report.findings.add(
            severity=ProblemSeverity.PROBLEM_SEVERITY_WARNING,
            reason="NO_TRAINER",
            message=f"No trainer of the pool {pool!r} is up: the job would wait for one.",
            advice="Have the operator start one, or name another pool.",
            field="resources.pool",
        )
        if report.verdict == ValidationVerdict.VALIDATION_VERDICT_OK:
            report.verdict = ValidationVerdict.VALIDATION_VERDICT_WARNINGS


def refuse_as_reported(report: PreflightReport) -> None:
    """Raises InvalidArgument with the reason of the first refusal and the fields at fault of all; nothing for a job
    that would run."""
    refusals = [finding for finding in report.findings if finding.severity == ProblemSeverity.PROBLEM_SEVERITY_ERROR]
    if refusals:
        first = refusals[0]
        violations = [
            Violation(violation.field, violation.description[:_MAX_DESCRIPTION])
            for refusal in refusals
            for violation in refusal.violations
        ]
        message = f"{first.message} {first.advice}".strip()
        raise InvalidArgument(first.reason, message, violations[:_MAX_VIOLATIONS])
