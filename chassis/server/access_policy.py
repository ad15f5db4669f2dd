"""The access policy of each method: an option in the protos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

from finetuneflow.v1 import access_pb2
from finetuneflow.v1.access_pb2 import Role, Scope


@dataclass(frozen=True)
class Policy:
    """Who may call a method, and which field names the resource that the call is about."""

    method: str
    """Name of the method, without its service."""
    role: int
    """A `Role`, ROLE_UNSPECIFIED for SCOPE_SERVICE."""
    scope: int
    """A `Scope`."""
    resource: str
    """See `Access.resource`. Empty: calls are not written to the audit log."""


def policies(services: Iterable[ServiceDescriptor]) -> dict[str, Policy]:
    """Returns the policy of each method by its path, such as `/finetuneflow.v1.RecipeService/GetRecipe`.

    Raises ValueError for a method whose policy is missing or incomplete.
    """
    return {
        f"/{service.full_name}/{method.name}": _policy(method) for service in services for method in service.methods
    }


RESPONSE: Final = "response."
"""Prefix of the path of a resource whose id is in the response."""


def _policy(method: MethodDescriptor) -> Policy:
    options = method.GetOptions()
    # The stubs leave out what kind of value an extension has.
    extension: Any = access_pb2.access
    access = options.Extensions[extension]
    if access.scope == Scope.SCOPE_UNSPECIFIED or (
        access.role == Role.ROLE_UNSPECIFIED and access.scope != Scope.SCOPE_SERVICE
    ):
        raise ValueError(f"{method.full_name} has no access policy: set the option (access), with role and scope")
    reads = options.idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    if not (access.resource or reads or access.scope == Scope.SCOPE_SERVICE):
        raise ValueError(f"{method.full_name} changes something: name its resource in the option (access)")
    if access.resource:
        _check_path(method, access.resource)
    return Policy(method.name, access.role, access.scope, access.resource)


def _check_path(method: MethodDescriptor, path: str) -> None:
    message: Descriptor | None = method.output_type if path.startswith(RESPONSE) else method.input_type
    *messages, field = path.removeprefix(RESPONSE).split(".")
    for name in messages:
        found = message.fields_by_name.get(name) if message else None
        message = found.message_type if found else None
    if message is None or field not in message.fields_by_name:
        raise ValueError(f"{method.full_name}: there is no field {path!r}, which its access policy names")
