"""Integrations of jobs: checks of their settings, and their rows."""

from __future__ import annotations

from collections.abc import Mapping

from sqlmodel import select
from sqlmodel.ext.asyncio.session import AsyncSession

from chassis.errors import InvalidArgument, Violation
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, IntegrationSpec
from finetuneflow.v1.integration_pb2 import Integration
from gateway.identifiers import new_id
from gateway.outbound_addresses import AddressPolicy, AddressRefused
from gateway.sql.tables import Delivery, now
from gateway.views import timestamp


def check_job_addresses(spec: FineTuningJobSpec, policy: AddressPolicy) -> None:
    """Raises what check_addresses raises for the integrations of a job."""
    check_addresses({f"spec.integrations[{index}]": each for index, each in enumerate(spec.integrations)}, policy)


def check_addresses(specs: Mapping[str, IntegrationSpec], policy: AddressPolicy) -> None:
    """Raises InvalidArgument if an integration names an address that the operator does not allow. `specs`: by path.

    What its host name resolves to, the delivery process checks whenever it connects.
    """
    found = []
    for path, spec in specs.items():
        for service, field in (("webhook", "url"), ("mlflow", "tracking_uri"), ("wandb", "base_url")):
            if spec.HasField(service) and (url := getattr(getattr(spec, service), field)):
                try:
                    policy.check_url(url)
                except AddressRefused as error:
                    message = f"{error}; name a public https address, or ask the operator to allow it"
                    found.append(Violation(f"{path}.{service}.{field}", message))
    if found:
        raise InvalidArgument("ADDRESS_REFUSED", f"{found[0].field}: {found[0].description}.", found)


def delivery_of(tenant: str, work_id: str, spec: IntegrationSpec, request_id: str = "") -> Delivery:
    """Returns the row of a new integration. `spec` has its defaults set."""
    moment = now()
    return Delivery(
        id=new_id("int"),
        tenant=tenant,
        work_id=work_id,
        request_id=request_id or None,
        spec=spec.SerializeToString(),
        create_time=moment,
        update_time=moment,
    )


async def integrations_of(session: AsyncSession, work_id: str) -> list[Integration]:
    """Returns the integrations of a job, oldest first."""
    query = select(Delivery).where(Delivery.work_id == work_id).order_by(Delivery.id)
    return [integration(row) for row in (await session.exec(query)).all()]


def integration(row: Delivery) -> Integration:
    """Converts a row to the message that callers receive."""
    spec = IntegrationSpec.FromString(row.spec)
    untaken = row.state == "INTEGRATION_STATE_ACTIVE" and not row.holder
    return Integration(
        id=row.id,
        job_id=row.work_id,
        spec=spec,
        kind=spec.WhichOneof("service") or "",
        state="INTEGRATION_STATE_PENDING" if untaken else row.state,
        run_name=row.run_name,
        run_url=row.run_url,
        delivered_sequence=row.sequence,
        failures=row.failures,
        last_error=row.error,
        create_time=timestamp(row.create_time),
        update_time=timestamp(row.update_time),
        end_time=None if row.end_time is None else timestamp(row.end_time),
    )
