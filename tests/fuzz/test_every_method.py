"""Every method of a gateway gets requests made from its descriptor, and must answer each with a status of its own.

`make test` sends a few requests to each method; `make fuzz` sends many (FUZZ_EXAMPLES).
"""

import os
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from chassis.server.access_policy import policies
from finetuneflow.v1.access_pb2 import Role, Scope
from finetuneflow.v1.tenant_service_pb2 import CreateTenantRequest
from tests.access.conftest import create_key
from tests.access.gateway import METHODS, AccessGateway, call
from tests.fuzz.messages import message

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))
MAX_GROWTH_BYTES = 256 << 20
NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED}
SERVED = sorted(
    name
    for name, method in METHODS.items()
    if policies([method.containing_service])[f"/{method.containing_service.full_name}/{method.name}"].scope
    != Scope.SCOPE_SERVICE
)


class Target:
    """A gateway with an operator's key, on one channel."""

    def __init__(self, gateway: AccessGateway) -> None:
        self.gateway = gateway
        # A key of its own tenant: what operators may do to a tenant, a request may do to this one.
        gateway.call("TenantService.CreateTenant", gateway.operator, CreateTenantRequest(name="fuzzed"))
        self.token = create_key(gateway, gateway.operator, tenant="fuzzed", role=Role.ROLE_OPERATOR)
        self.channel = grpc.insecure_channel(gateway.address)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    gateway = AccessGateway(tmp_path_factory.mktemp("fuzz"))
    gateway.start()
    target = Target(gateway)
    yield target
    target.channel.close()
    gateway.stop()


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.timeout(3600)
def test_any_request_gets_a_status_of_its_own(target: Target, name: str) -> None:
    """A caller can act on a refusal; INTERNAL and UNKNOWN tell him nothing, and a hang keeps a slot from others."""
    descriptor = METHODS[name].input_type

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=EXAMPLES < 100,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(request=message(descriptor, known=("fuzzed",)))
    def send(request: Message) -> None:
        answer = call(target.channel, name, target.token, request, seconds=60)
        assert answer.code not in NEVER, f"{answer}\n{request}"

    send()


@pytest.mark.parametrize("name", SERVED)
def test_bytes_that_are_no_message_are_refused(target: Target, name: str) -> None:
    """A client of another version or a scanner must not leave a traceback."""
    method = METHODS[name]
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    invoke = getattr(target.channel, shape)(f"/{method.containing_service.full_name}/{method.name}")
    metadata = (("authorization", f"Bearer {target.token}"),)
    for garbage in (b"\xff" * 10, b"\x0a\xff\xff\xff\xff\x0f", b"\x00", os.urandom(64)):
        try:
            answer = invoke(iter([garbage]) if method.client_streaming else garbage, timeout=60, metadata=metadata)
            if method.server_streaming:
                next(iter(answer), None)
                answer.cancel()
        except grpc.RpcError as error:
            assert error.code() not in NEVER, error
    assert call(target.channel, "KeyService.GetCaller", target.token).code is grpc.StatusCode.OK


@settings(max_examples=max(20, EXAMPLES // 10), deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(header=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=300))
def test_any_credentials_get_a_refusal(target: Target, header: str) -> None:
    answer = call(target.channel, "KeyService.GetCaller", None, authorization=header)
    assert answer.code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED), answer


def test_gateway_has_not_grown(target: Target) -> None:
    """The last test of this file: what was sent before must not have stayed in memory."""
    before = target.gateway.resident_bytes
    for name in SERVED:
        for _ in range(max(5, EXAMPLES // 4)):
            call(target.channel, name, target.token, seconds=60)
    assert target.gateway.resident_bytes - before < MAX_GROWTH_BYTES
    assert "Traceback" not in target.gateway.log
