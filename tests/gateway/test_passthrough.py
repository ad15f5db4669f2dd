import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from pydantic import SecretStr

from chassis.bus.event_bus import Bus
from chassis.errors import InvalidArgument, Unavailable, Violation
from chassis.security.certificates import CertificateAuthority, CertificateFiles
from chassis.security.identity import Identity
from chassis.server.grpc_server import Mount, serve
from engine.catalogue import Catalogue
from finetuneflow.v1 import evaluator_service_pb2, probe_service_pb2
from finetuneflow.v1.estimate_pb2 import Recommendation
from finetuneflow.v1.evaluator_service_pb2_grpc import (
    EvaluatorServiceServicer,
    EvaluatorServiceStub,
    add_EvaluatorServiceServicer_to_server,
)
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EXPORT_FORMAT_GGUF
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.probe_service_pb2_grpc import (
    ProbeServiceServicer,
    ProbeServiceStub,
    add_ProbeServiceServicer_to_server,
)
from finetuneflow.v1.work_pb2 import Node
from gateway.observed_speeds import ObservedSpeeds
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.preflights import Preflights
from gateway.secret_store import SecretKeys, SecretStore
from gateway.servicers.generation import Generation
from gateway.servicers.probe import Probe
from gateway.sql.database import Database
from tests.gateway.serving import refusal, serving
from tests.servers.nats import NatsServer

# A port on which nothing listens: where a node was that died without saying so.
DEAD = "127.0.0.1:9"


class NamedProbe(ProbeServiceServicer):
    """A probe that answers with its own name, and refuses like a real one."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def RecommendMethod(self, request: Any, context: Any) -> probe_service_pb2.RecommendMethodResponse:
        if request.base_model == "bad":
            raise InvalidArgument("MODEL_NOT_FOUND", "no such model", [Violation("base_model", "unknown")])
        if request.base_model == "busy":
            raise Unavailable("HUB_UNREACHABLE", "the hub is away")
        if request.base_model == "slow":
            await asyncio.Event().wait()
        return probe_service_pb2.RecommendMethodResponse(recommendation=Recommendation(reason=self.name))


class StreamingEvaluator(EvaluatorServiceServicer):
    """An evaluator that generates one word at a time."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.left = asyncio.Event()

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[evaluator_service_pb2.GenerateResponse]:
        if request.prompt == "bad":
            raise InvalidArgument("PROMPT_TOO_LONG", "too long", [Violation("prompt", "too long")])
        for word in [self.name] if self.name else request.prompt.split():
            yield evaluator_service_pb2.GenerateResponse(text=word)
        if request.prompt.endswith("for ever"):
            try:
                await asyncio.Event().wait()
            finally:
                self.left.set()


@pytest.fixture
async def bus(nats_server: NatsServer) -> AsyncIterator[Bus]:
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    yield bus
    await bus.close()


@contextlib.asynccontextmanager
async def a_gateway(bus: Bus, folder: Path, identity: Identity | None = None) -> AsyncIterator[ProbeServiceStub]:
    """ProbeService as a gateway serves it."""
    add = add_ProbeServiceServicer_to_server
    database = await Database.open(f"sqlite:///{folder / 'gateway.sqlite'}")
    passthrough = Passthrough(bus, identity)
    machines = PlanningTargets(passthrough, ObservedSpeeds(database))
    secrets = SecretStore(database, SecretKeys(folder / "secrets.key", SecretStr("")))
    await secrets.set("default", "wandb", "a key of another form")
    preflights = Preflights(database, passthrough, machines, Catalogue(folder), secrets=secrets)
    servicer = Probe(passthrough, machines, preflights)
    async with (
        serving(probe_service_pb2, "ProbeService", add, servicer) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield ProbeServiceStub(channel)
    await database.close()


@pytest.fixture
async def probe(bus: Bus, tmp_path: Path) -> AsyncIterator[ProbeServiceStub]:
    async with a_gateway(bus, tmp_path) as probe:
        yield probe


@contextlib.asynccontextmanager
async def a_probe(bus: Bus, name: str) -> AsyncIterator[str]:
    add = add_ProbeServiceServicer_to_server
    async with serving(probe_service_pb2, "ProbeService", add, NamedProbe(name)) as address:
        await bus.put_node(Node(id=name, service="probe", address=address))
        yield address


def recommend(probe: ProbeServiceStub, model: str = "m", node_id: str = "", timeout: float | None = None) -> Any:
    request = probe_service_pb2.RecommendMethodRequest(base_model=model, node_id=node_id)
    return probe.RecommendMethod(request, timeout=timeout)


async def test_dry_run_refuses_the_addresses_that_creation_refuses(probe: ProbeServiceStub) -> None:
    request = probe_service_pb2.PreflightFineTuningJobRequest()
    request.spec.base_model = "smollm2-135m"
    request.spec.training_data.add(dataset="ds_1")
    webhook = request.spec.integrations.add().webhook
    webhook.url, webhook.secret = "https://127.0.0.1/hook", "hook"
    assert (await refusal(probe.PreflightFineTuningJob(request))).reason == "ADDRESS_REFUSED"


async def test_dry_run_refuses_what_no_running_service_offers_as_creation_does(probe: ProbeServiceStub) -> None:
    """A job that `ftf validate` passed was refused when it was created."""
    asked = probe_service_pb2.PreflightFineTuningJobRequest()
    asked.spec.base_model = "smollm2-135m"
    asked.spec.training_data.add(dataset="ds_1")
    webhook = asked.spec.integrations.add().webhook
    webhook.url, webhook.secret = "https://example.com/hook", "wandb"
    refused = await refusal(probe.PreflightFineTuningJob(asked))
    assert "whsec_" in refused.message and refused.fields == ("spec.integrations[0].webhook.secret",)
    asked.spec.export.formats.append(EXPORT_FORMAT_GGUF)
    asked.spec.export.gguf_types.append("q4_k_m")
    assert (await refusal(probe.PreflightFineTuningJob(asked))).reason == "GGUF_TYPE_UNAVAILABLE"
    asked.spec.evaluation.harness_tasks.append("sums")
    assert (await refusal(probe.PreflightFineTuningJob(asked))).reason == "UNKNOWN_HARNESS_TASK"


async def test_hardware_of_all_nodes_is_listed_without_probe(bus: Bus, probe: ProbeServiceStub) -> None:
    """Every live node is listed by id, including one that publishes no hardware."""
    await bus.put_node(Node(id="b", service="trainer", hardware=Hardware(node_id="b", cpu_cores=4)))
    await bus.put_node(Node(id="a", service="probe"))
    Request = probe_service_pb2.GetHardwareRequest
    answer = await probe.GetHardware(Request())
    assert [(hardware.node_id, hardware.cpu_cores) for hardware in answer.hardware] == [("a", 0), ("b", 4)]
    answer = await probe.GetHardware(Request(node_id="b"))
    assert [hardware.node_id for hardware in answer.hardware] == ["b"]
    found = await refusal(probe.GetHardware(Request(node_id="ghost")))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND")
    assert "ghost" in found.message


async def test_calls_without_reachable_probe_are_unavailable(bus: Bus, probe: ProbeServiceStub) -> None:
    """No probe, and a published address that nobody listens on, are both NO_PROBE and not INTERNAL."""
    for _ in range(2):
        found = await refusal(recommend(probe))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_PROBE")
        await bus.put_node(Node(id="dead", service="probe", address=DEAD))
        await bus.put_node(Node(id="t", service="trainer", address=DEAD))


async def test_dead_probe_is_skipped(bus: Bus, probe: ProbeServiceStub) -> None:
    """A dead probe stays in the list for seconds; callers need not wait for that."""
    await bus.put_node(Node(id="a-dead", service="probe", address=DEAD))
    async with a_probe(bus, "b"):
        assert (await recommend(probe)).recommendation.reason == "b"


@contextlib.asynccontextmanager
async def a_secured_probe(bus: Bus, node_id: str, files: CertificateFiles | None) -> AsyncIterator[None]:
    """A node that publishes itself as a probe; its certificate may say otherwise, or be missing."""
    descriptor = probe_service_pb2.DESCRIPTOR.services_by_name["ProbeService"]
    mount = Mount(descriptor, add_ProbeServiceServicer_to_server, NamedProbe(node_id))
    credentials = Identity(files).server_credentials() if files else None
    server = await serve(mount, listen="127.0.0.1:0", credentials=credentials)
    await bus.put_node(Node(id=node_id, service="probe", address=server.address))
    yield
    await server.stop(0)


async def test_node_without_certificate_of_its_service_gets_no_call(
    bus: Bus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stolen trainer that publishes itself as a probe would otherwise read callers' requests and answer them."""
    authority = CertificateAuthority.open(tmp_path / "ca")
    foreign = CertificateAuthority.open(tmp_path / "foreign" / "ca")
    async with (
        a_gateway(bus, tmp_path, Identity(authority.issue(tmp_path / "gateway", "gateway"))) as probe,
        a_secured_probe(bus, "a-trainer", authority.issue(tmp_path / "trainer", "trainer")),
        a_secured_probe(bus, "b-foreign", foreign.issue(tmp_path / "foreign" / "probe", "probe")),
        a_secured_probe(bus, "c-plaintext", None),
    ):
        with caplog.at_level(logging.WARNING, "gateway.passthrough"):
            found = await refusal(recommend(probe))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_PROBE")
        assert len(caplog.records) == 3, "the operator sees why no node was asked"
        async with a_secured_probe(bus, "d-right", authority.issue(tmp_path / "probe", "probe")):
            assert (await recommend(probe)).recommendation.reason == "d-right"


async def test_request_about_a_node_is_sent_to_that_node_first(bus: Bus, probe: ProbeServiceStub) -> None:
    """Only that node knows its own hardware directly."""
    async with a_probe(bus, "a"), a_probe(bus, "b"):
        assert (await recommend(probe)).recommendation.reason == "a"
        assert (await recommend(probe, node_id="b")).recommendation.reason == "b"


async def test_refusal_of_probe_is_passed_through_unchanged(bus: Bus, probe: ProbeServiceStub) -> None:
    """Field paths and reasons are the probe's; an UNAVAILABLE from a probe is a response, not a dead node."""
    async with a_probe(bus, "a"):
        found = await refusal(recommend(probe, "bad"))
        assert (found.code, found.reason, found.fields) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "MODEL_NOT_FOUND",
            ("base_model",),
        )
        found = await refusal(recommend(probe, "busy"))
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "HUB_UNREACHABLE")
        unbuilt = probe.EstimateResources(probe_service_pb2.EstimateResourcesRequest())
        assert (await refusal(unbuilt)).code is grpc.StatusCode.UNIMPLEMENTED


async def test_callers_deadline_applies_to_probe(bus: Bus, probe: ProbeServiceStub) -> None:
    async with a_probe(bus, "a"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await recommend(probe, "slow", timeout=0.5)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_calls_without_broker_are_unavailable(nats_server: NatsServer, probe: ProbeServiceStub) -> None:
    nats_server.stop()
    found = await refusal(probe.GetHardware(probe_service_pb2.GetHardwareRequest()))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_BROKER")


@contextlib.asynccontextmanager
async def a_generating_gateway(bus: Bus, folder: Path) -> AsyncIterator[EvaluatorServiceStub]:
    """EvaluatorService as a gateway serves it, with a base model `m`."""
    add = add_EvaluatorServiceServicer_to_server
    database = await Database.open(f"sqlite:///{folder / 'gateway.sqlite'}")
    servicer = Generation(database, Catalogue(folder, {"m": folder}), Passthrough(bus))
    async with (
        serving(evaluator_service_pb2, "EvaluatorService", add, servicer) as gateway,
        grpc.aio.insecure_channel(gateway) as channel,
    ):
        yield EvaluatorServiceStub(channel)
    await database.close()


async def test_generated_text_is_streamed_from_evaluator(bus: Bus, tmp_path: Path) -> None:
    """Words arrive as they are generated, refusals unchanged; a caller that cancels ends the generation."""
    speaker = StreamingEvaluator()
    add = add_EvaluatorServiceServicer_to_server
    async with (
        serving(evaluator_service_pb2, "EvaluatorService", add, speaker) as evaluator,
        a_generating_gateway(bus, tmp_path) as stub,
    ):
        generate = stub.Generate
        Request = partial(evaluator_service_pb2.GenerateRequest, model="m")
        found = await refusal(generate(Request(prompt="a b")).read())
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_EVALUATOR")
        await bus.put_node(Node(id="a-dead", service="evaluator", address=DEAD))
        await bus.put_node(Node(id="b", service="evaluator", address=evaluator))
        assert [answer.text async for answer in generate(Request(prompt="a b"))] == ["a", "b"]
        found = await refusal(generate(Request(prompt="bad")).read())
        assert (found.code, found.reason, found.fields) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "PROMPT_TOO_LONG",
            ("prompt",),
        )
        call = generate(Request(prompt="on for ever"))
        assert (await call.read()).text == "on"
        call.cancel()
        await asyncio.wait_for(speaker.left.wait(), 10)


async def test_evaluator_that_dies_during_generation_is_an_error(bus: Bus, tmp_path: Path) -> None:
    """Half an answer with status OK would look complete."""
    add = add_EvaluatorServiceServicer_to_server
    async with a_generating_gateway(bus, tmp_path) as stub:
        async with serving(evaluator_service_pb2, "EvaluatorService", add, StreamingEvaluator()) as evaluator:
            await bus.put_node(Node(id="a", service="evaluator", address=evaluator))
            call = stub.Generate(evaluator_service_pb2.GenerateRequest(model="m", prompt="on for ever"))
            assert [(await call.read()).text for _ in range(3)] == ["on", "for", "ever"]
        found = await refusal(call.read())
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "NODE_LOST")


async def test_evaluator_that_holds_the_model_is_asked_first(bus: Bus, tmp_path: Path) -> None:
    """Another one would load it first, which takes seconds to minutes."""
    add = add_EvaluatorServiceServicer_to_server
    cold, warm = StreamingEvaluator("cold"), StreamingEvaluator("warm")
    async with (
        serving(evaluator_service_pb2, "EvaluatorService", add, cold) as first,
        serving(evaluator_service_pb2, "EvaluatorService", add, warm) as second,
        a_generating_gateway(bus, tmp_path) as stub,
    ):
        await bus.put_node(Node(id="a", service="evaluator", address=first, warm_models=["other"]))
        await bus.put_node(Node(id="b", service="evaluator", address=second, warm_models=["m"]))
        answer = await stub.Generate(evaluator_service_pb2.GenerateRequest(model="m", prompt="who?")).read()
        assert answer.text == "warm"
