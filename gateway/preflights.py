"""Dry runs: the preflight of a job that is not created, answered by a probe."""

from typing import Any

import grpc

from chassis.errors import InvalidArgument, Violation
from engine.catalogue import Catalogue
from engine.config.spec_proto import config_to_spec
from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.preflight_pb2 import PreflightReport
from finetuneflow.v1.probe_service_pb2_grpc import ProbeServiceStub
from finetuneflow.v1.validation_pb2 import ProblemSeverity, ValidationVerdict
from gateway import views
from gateway.access.callers import tenant_of
from gateway.comparisons import find_judges
from gateway.integrations import check_job_addresses
from gateway.job_checks import check_offers_and_keys
from gateway.outbound_addresses import NO_PRIVATE_ADDRESSES, AddressPolicy
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.secret_store import SecretStore
from gateway.specs import check_datasets, check_secrets, check_spec, named_secrets
from gateway.sql.database import Database
from gateway.training_start import find_start

_MAX_VIOLATIONS, _MAX_DESCRIPTION = 10, 160
"""Limits of a status, which travels in a header; the report of PreflightFineTuningJob is complete."""

Context = grpc.aio.ServicerContext[Any, Any]


class Preflights:
    """Sends preflight requests to a probe, completed with what only a gateway knows."""

    def __init__(
        self,
        database: Database,
        passthrough: Passthrough,
        machines: PlanningTargets,
        catalogue: Catalogue,
        addresses: AddressPolicy = NO_PRIVATE_ADDRESSES,
        secrets: SecretStore | None = None,
    ) -> None:
        """`addresses` are those that integrations may name, `secrets` those that they use."""
        self._database = database
        self._passthrough = passthrough
        self._machines = machines
        self._catalogue = catalogue
        self._addresses, self._secrets = addresses, secrets

    async def ask(
        self, request: api.PreflightFineTuningJobRequest, context: Context
    ) -> api.PreflightFineTuningJobResponse:
        """Raises what CreateFineTuningJob raises for an invalid spec, and Unavailable if no probe can be reached."""
        request.tenant = tenant_of(context)
        async with self._database.read() as session:
            start = await find_start(session, request.tenant, request.spec)
        if start is not None:
            request.spec.CopyFrom(start.spec)
        config = check_spec(request.spec, self._catalogue, start.source if start else None)
        merged = config_to_spec(config)
        check_job_addresses(merged, self._addresses)
        await check_offers_and_keys(request.tenant, merged, self._passthrough.nodes, self._secrets)
        async with self._database.read() as session:
            rows = await check_datasets(session, request.tenant, request.spec)
            await check_secrets(session, request.tenant, named_secrets(request.spec))
            await find_judges(session, request.tenant, request.spec.evaluation, "spec.evaluation")
        # A probe has no database, and must not read another tenant's data.
        del request.datasets[:]
        request.datasets.extend(map(views.dataset, rows))
        del request.trained_data[:]
        request.trained_data.extend(start.message.trained_data if start is not None else ())
        await self._machines.fill_in(request)
        answer: api.PreflightFineTuningJobResponse = await self._passthrough.unary(
            "probe", lambda channel: ProbeServiceStub(channel).PreflightFineTuningJob, request, context, request.node_id
        )
        await self._add_pool_warning(request.spec.resources.pool or "default", answer.report)
        return answer

    async def _add_pool_warning(self, pool: str, report: PreflightReport) -> None:
        """Adds a warning if no trainer of the pool runs: the job would wait for one without limit."""
        nodes = await self._passthrough.nodes()
        if any(node.service == "trainer" and node.pool == pool and not node.draining for node in nodes):
            return
        report.findings.add(
            severity=ProblemSeverity.PROBLEM_SEVERITY_WARNING,
            reason="NO_TRAINER",
            message=f"No trainer of pool {pool!r} is running: the job would wait for one.",
            advice="Ask the operator to start one, or name another pool.",
            field="resources.pool",
        )
        if report.verdict == ValidationVerdict.VALIDATION_VERDICT_OK:
            report.verdict = ValidationVerdict.VALIDATION_VERDICT_WARNINGS


def refuse_as_reported(report: PreflightReport) -> None:
    """Raises InvalidArgument if the report refuses the job: the first reason, and the violations of all refusals."""
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
