"""Owners of jobs, datasets and artifacts."""

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

    async def create(self, name: str, *, display_name: str = "") -> Tenant:
        """Creates a tenant.

        Args:
            name: 1 to 40 characters of a-z, 0-9 and `-`, starting with a letter. It never changes.
            display_name: Display name. At most 120 characters.

        Returns:
            The tenant.

        Raises:
            AlreadyExists: The name is taken.
            InvalidArgument: The name is not valid.
            PermissionDenied: The caller is no operator.
            Unavailable: The connection was lost; the tenant may have been created.
        """
        request = fill(pb.CreateTenantRequest(), name=name, display_name=display_name)
        # A repeated call would refuse the name that the first one has taken.
        return Tenant.from_proto((await self._transport.call_once(self._stub.CreateTenant, request)).tenant)

    async def get(self, name: str) -> Tenant:
        """Returns one tenant.

        Args:
            name: Name of the tenant.

        Returns:
            The tenant.

        Raises:
            NotFound: The tenant does not exist.
            PermissionDenied: The caller is no operator.
        """
        request = fill(pb.GetTenantRequest(), name=name)
        return Tenant.from_proto((await self._transport.call(self._stub.GetTenant, request)).tenant)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Tenant, None]:
        """Lists the tenants, ordered by name. Pages are fetched as needed.

        Args:
            limit: Maximum number of tenants. Default: no limit.

        Yields:
            The tenants.

        Raises:
            PermissionDenied: The caller is no operator.
        """
        request = pb.ListTenantsRequest()
        return paged(self._transport, self._stub.ListTenants, request, "tenants", limit, Tenant.from_proto)

    async def update(
        self,
        name: str,
        *,
        display_name: str | None = None,
        disabled: bool | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> Tenant:
        """Changes the fields that are given.

        Args:
            name: Name of the tenant.
            display_name: New display name. Default: unchanged.
            disabled: True: its keys are refused from now on, and their running streams end. False: they work again.
                Default: unchanged.
            limits: Limits by the names of TenantLimits. They replace all limits of the tenant. Default: unchanged.

        Returns:
            The tenant.

        Raises:
            NotFound: The tenant does not exist.
            FailedPrecondition: The caller's own tenant would be disabled.
            InvalidArgument: A limit is unknown or negative.
            PermissionDenied: The caller is no operator.
        """
        own = None if limits is None else _limits(limits)
        request = fill(pb.UpdateTenantRequest(limits=own), name=name, display_name=display_name, disabled=disabled)
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
    """`client.tenants`, for operators. A new system has the tenant `default`."""

    create = blocking(AsyncTenants.create)
    get = blocking(AsyncTenants.get)
    list = iterating(AsyncTenants.list)
    update = blocking(AsyncTenants.update)
