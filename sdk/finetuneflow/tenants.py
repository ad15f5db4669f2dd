"""Tenants, for operators."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import nearest
from finetuneflow.errors import InvalidArgument, Violation
from finetuneflow.fields import fill
from finetuneflow.paging import paged
from finetuneflow.resources.access import Tenant
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import tenant_pb2
from finetuneflow.v1 import tenant_service_pb2 as pb
from finetuneflow.v1 import tenant_service_pb2_grpc as pb_grpc


class AsyncTenants:
    """`client.tenants` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.TenantServiceStub(transport.channel)

    async def create(self, name: str, *, display_name: str | None = None) -> Tenant:
        """Creates a tenant.

        Args:
            name: 1 to 40 characters of a-z, 0-9 and `-`, starting with a letter.
            display_name: Display name. At most 120 characters.

        Returns:
            The tenant.

        Raises:
            AlreadyExists: The name is taken.
            InvalidArgument: The name is not valid.
        """
        request = fill(pb.CreateTenantRequest(name=name), display_name=display_name)
        return Tenant.from_proto((await self._transport.call(self._stub.CreateTenant, request)).tenant)

    async def get(self, name: str) -> Tenant:
        """Returns one tenant.

        Args:
            name: Name of the tenant.

        Returns:
            The tenant.

        Raises:
            NotFound: The tenant does not exist.
        """
        response = await self._transport.call(self._stub.GetTenant, pb.GetTenantRequest(name=name))
        return Tenant.from_proto(response.tenant)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Tenant, None]:
        """Lists the tenants, ordered by name.

        Args:
            limit: Maximum number of tenants. Default: no limit.

        Yields:
            The tenants.
        """
        return paged(
            self._transport, self._stub.ListTenants, pb.ListTenantsRequest(), "tenants", limit, Tenant.from_proto
        )

    async def update(
        self,
        name: str,
        *,
        display_name: str | None = None,
        disabled: bool | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Tenant:
        """Changes what is given.

        Args:
            name: Name of the tenant.
            display_name: New display name.
            disabled: True refuses its keys and ends their streams; False lets them work again.
            limits: New limits by the names of TenantLimits; they replace all limits of the tenant.

        Returns:
            The tenant.

        Raises:
            NotFound: The tenant does not exist.
            FailedPrecondition: It is the caller's own tenant and would be disabled.
            InvalidArgument: A limit is unknown or negative.
        """
        own = None if limits is None else _limits(limits)
        request = pb.UpdateTenantRequest(name=name, limits=own)
        fill(request, display_name=display_name, disabled=disabled)
        return Tenant.from_proto((await self._transport.call(self._stub.UpdateTenant, request)).tenant)


def _limits(values: Mapping[str, int]) -> tenant_pb2.TenantLimits:
    known = [field.name for field in tenant_pb2.TenantLimits.DESCRIPTOR.fields]
    unknown = [
        Violation(f"limits.{name}", f"is no limit{nearest(name, known)}") for name in values if name not in known
    ]
    if unknown:
        raise InvalidArgument("The limits have unknown names.", reason="UNKNOWN_VALUE", violations=unknown)
    return fill(tenant_pb2.TenantLimits(), **values)


class Tenants(Blocking):
    """`client.tenants`."""

    create = blocking(AsyncTenants.create)
    get = blocking(AsyncTenants.get)
    list = iterating(AsyncTenants.list)
    update = blocking(AsyncTenants.update)
