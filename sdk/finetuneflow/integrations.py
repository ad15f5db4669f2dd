"""Webhooks and trackers that follow jobs."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.paging import paged
from finetuneflow.resources.integration import DeliveryAttempt, Integration
from finetuneflow.spec import integration_spec
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import integration_service_pb2 as pb
from finetuneflow.v1 import integration_service_pb2_grpc as pb_grpc


class AsyncIntegrations:
    """`client.integrations` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.IntegrationServiceStub(transport.channel)

    async def create(self, job_id: str, spec: Mapping[str, Any], *, request_id: str | None = None) -> Integration:
        """Adds an integration to a job, which may have ended: it gets the whole history.

        Args:
            job_id: Id of the job.
            spec: A table with one service and its settings, such as `{"webhook": {"url": "https://…", "secret":
                "NAME"}}`, `{"tensorboard": {}}`, `{"mlflow": {"tracking_uri": "https://…"}}` or `{"wandb": {"secret":
                "NAME"}}`.
            request_id: Idempotency key, unique in the job, at most 128 characters: a repeated call returns the same
                integration. Default: a new one, so that a retry after a lost connection creates no second.

        Returns:
            The integration.

        Raises:
            NotFound: The job or a named secret does not exist.
            InvalidArgument: A setting is not valid, the secret of a webhook is no key of one, or the operator does not
                allow the address.
            FailedPrecondition: The job has 16 integrations.
            AlreadyExists: The request_id was used for another request.
        """
        request = pb.CreateIntegrationRequest(
            job_id=job_id, spec=integration_spec(spec), request_id=request_id or uuid.uuid4().hex
        )
        response = await self._transport.call(self._stub.CreateIntegration, request)
        return Integration.from_proto(response.integration)

    def list(self, job_id: str, *, limit: int | None = None) -> AsyncGenerator[Integration, None]:
        """Lists the integrations of a job, oldest first. Pages are fetched as needed.

        Args:
            job_id: Id of the job.
            limit: Maximum number of integrations. Default: no limit.

        Yields:
            The integrations.

        Raises:
            NotFound: The job does not exist.
        """
        request = pb.ListIntegrationsRequest(job_id=job_id)
        return paged(
            self._transport, self._stub.ListIntegrations, request, "integrations", limit, Integration.from_proto
        )

    async def retry(self, integration_id: str) -> Integration:
        """Continues an integration that has FAILED, or waits for its next try (RETRYING), at once with the event that
        could not be delivered; it is RETRYING then. Does nothing in other states.

        Args:
            integration_id: Id of the integration.

        Returns:
            The integration.

        Raises:
            NotFound: The integration does not exist.
        """
        request = pb.RetryIntegrationRequest(integration_id=integration_id)
        response = await self._transport.call(self._stub.RetryIntegration, request)
        return Integration.from_proto(response.integration)

    async def delete(self, integration_id: str) -> None:
        """Ends an integration and deletes its delivery log. What the service has got stays there.

        Args:
            integration_id: Id of the integration.

        Raises:
            NotFound: The integration does not exist.
        """
        await self._transport.call(
            self._stub.DeleteIntegration, pb.DeleteIntegrationRequest(integration_id=integration_id)
        )

    def attempts(self, integration_id: str, *, limit: int | None = None) -> AsyncGenerator[DeliveryAttempt, None]:
        """Lists the latest tries of an integration, newest first; at most 100 are kept.

        Args:
            integration_id: Id of the integration.
            limit: Maximum number of tries. Default: no limit.

        Yields:
            The tries.

        Raises:
            NotFound: The integration does not exist.
        """
        request = pb.ListDeliveryAttemptsRequest(integration_id=integration_id)
        return paged(
            self._transport, self._stub.ListDeliveryAttempts, request, "attempts", limit, DeliveryAttempt.from_proto
        )


class Integrations(Blocking):
    """`client.integrations`."""

    create = blocking(AsyncIntegrations.create)
    list = iterating(AsyncIntegrations.list)
    retry = blocking(AsyncIntegrations.retry)
    delete = blocking(AsyncIntegrations.delete)
    attempts = iterating(AsyncIntegrations.attempts)
