"""Every method of the contract, called with every kind of credentials. The cases are made from the descriptors."""

import base64

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor

from chassis.server.access_policy import Policy, policies
from finetuneflow.v1.access_pb2 import Role, Scope
from tests.access.conftest import Tokens
from tests.access.gateway import METHODS, AccessGateway

POLICIES: dict[str, Policy] = {
    name: policies([method.containing_service])[f"/{method.containing_service.full_name}/{method.name}"]
    for name, method in METHODS.items()
}
SERVED = sorted(name for name, policy in POLICIES.items() if policy.scope != Scope.SCOPE_SERVICE)
INTERNAL = sorted(set(METHODS) - set(SERVED))

INVALID = {
    "malformed": "INVALID_KEY",
    "wrong_secret": "INVALID_KEY",
    "expired": "KEY_EXPIRED",
    "revoked": "KEY_REVOKED",
    "disabled": "TENANT_DISABLED",
}
ROLES = {"reader": Role.ROLE_READER, "member": Role.ROLE_MEMBER, "operator": Role.ROLE_OPERATOR}
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}


@pytest.mark.parametrize("name", SERVED)
def test_call_without_credentials_is_refused(access_gateway: AccessGateway, tokens: Tokens, name: str) -> None:
    """A method that answers everybody is a hole, whatever it does."""
    headers = [None, "", "Bearer", "Bearer ", "Basic " + base64.b64encode(tokens.member.encode()).decode(), "Bearerx"]
    for header in headers:
        answer = access_gateway.call(name, None, authorization=header)
        assert answer.code is grpc.StatusCode.UNAUTHENTICATED, (header, str(answer))
        assert answer.reason == "NO_CREDENTIALS"
        assert "ftf login" in answer.message


@pytest.mark.parametrize("kind", sorted(INVALID))
@pytest.mark.parametrize("name", SERVED)
def test_credentials_that_do_not_hold_are_refused(
    access_gateway: AccessGateway, tokens: Tokens, name: str, kind: str
) -> None:
    """A key that has ended opens nothing, and its holder reads why."""
    answer = access_gateway.call(name, getattr(tokens, kind))
    assert (answer.code, answer.reason) == (grpc.StatusCode.UNAUTHENTICATED, INVALID[kind]), str(answer)


@pytest.mark.parametrize("role", sorted(ROLES))
@pytest.mark.parametrize("name", SERVED)
def test_role_opens_the_methods_of_its_policy_and_no_other(
    access_gateway: AccessGateway, tokens: Tokens, name: str, role: str
) -> None:
    """A reader changes nothing and a member manages no tenants; and whoever may call is not turned away."""
    answer = access_gateway.call(name, getattr(tokens, role))
    if ROLES[role] < POLICIES[name].role:
        assert (answer.code, answer.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ROLE_TOO_LOW"), str(answer)
    else:
        refused = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
        assert answer.code not in refused | NEVER, str(answer)


@pytest.mark.parametrize("name", INTERNAL)
def test_internal_methods_are_not_served_to_callers(access_gateway: AccessGateway, tokens: Tokens, name: str) -> None:
    """Not even an operator drains a trainer through the gateway."""
    answer = access_gateway.call(name, tokens.operator)
    assert answer.code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED), str(answer)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_has_a_policy(name: str) -> None:
    """Otherwise a new method would be open, or closed, by accident."""
    assert POLICIES[name].scope != Scope.SCOPE_UNSPECIFIED


def test_method_without_a_policy_is_an_error() -> None:
    """A server that mounts it must not start."""
    from grpc_health.v1 import health_pb2

    with pytest.raises(ValueError, match="has no access policy"):
        policies([health_pb2.DESCRIPTOR.services_by_name["Health"]])


def _reads(method: MethodDescriptor) -> bool:
    return method.name.startswith(("Get", "List", "Watch", "Download", "Recommend", "Estimate", "Preflight"))


@pytest.mark.parametrize("name", SERVED)
def test_what_changes_something_is_audited(name: str) -> None:
    """An action that leaves no entry cannot be accounted for."""
    method = METHODS[name]
    if not _reads(method) and method.name not in ("ValidateDataset", "PreviewDataset", "Generate"):
        assert POLICIES[name].resource
