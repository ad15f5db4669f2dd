"""Each service starts by itself, serves its methods and stays small."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from chassis.bus.event_bus import Bus
from finetuneflow.v1 import (
    evaluator_service_pb2,
    evaluator_service_pb2_grpc,
    exporter_service_pb2,
    exporter_service_pb2_grpc,
    fine_tuning_job_spec_pb2,
    probe_service_pb2,
    probe_service_pb2_grpc,
    trainer_service_pb2,
    trainer_service_pb2_grpc,
)
from tests.servers.nats import NatsServer
from tests.services.conftest import SERVICES, Process


@pytest.fixture
def channels(processes: dict[str, Process]) -> Iterator[dict[str, grpc.Channel]]:
    opened = {name: grpc.insecure_channel(process.address) for name, process in processes.items()}
    yield opened
    for channel in opened.values():
        channel.close()


def refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Status code and ErrorInfo reason."""
    call: Any = error
    details = dict(call.trailing_metadata())["grpc-status-details-bin"]
    info = error_details_pb2.ErrorInfo()
    status_pb2.Status.FromString(details).details[0].Unpack(info)
    return call.code(), info.reason


@pytest.mark.parametrize("name", SERVICES)
def test_health_and_reflection(channels: dict[str, grpc.Channel], name: str) -> None:
    service = f"finetuneflow.v1.{name.capitalize()}Service"
    health = health_pb2_grpc.HealthStub(channels[name])
    answers = health.Watch(health_pb2.HealthCheckRequest(service=service), timeout=30)
    assert any(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers)

    reflection = reflection_pb2_grpc.ServerReflectionStub(channels[name])
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    listed = next(iter(reflection.ServerReflectionInfo(iter([request]), timeout=10)))
    assert service in {entry.name for entry in listed.list_services_response.service}


def test_probe_returns_its_own_hardware_only(channels: dict[str, grpc.Channel]) -> None:
    stub = probe_service_pb2_grpc.ProbeServiceStub(channels["probe"])
    (hardware,) = stub.GetHardware(probe_service_pb2.GetHardwareRequest(), timeout=10).hardware
    assert hardware.node_id == "probe-under-test"
    assert hardware.cpu_cores >= 1
    assert hardware.memory_total_bytes > hardware.memory_available_bytes > 0
    with pytest.raises(grpc.RpcError) as caught:
        stub.GetHardware(probe_service_pb2.GetHardwareRequest(node_id="elsewhere"), timeout=10)
    assert refusal(caught.value) == (grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND")


def test_evaluator_without_gateway(channels: dict[str, grpc.Channel]) -> None:
    """An evaluator has no database: the request must contain what a gateway would fill in."""
    generate = evaluator_service_pb2_grpc.EvaluatorServiceStub(channels["evaluator"]).Generate
    with pytest.raises(grpc.RpcError) as caught:
        list(generate(evaluator_service_pb2.GenerateRequest(model="m", prompt="p"), timeout=10))
    assert refusal(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


def test_preflight_without_gateway(channels: dict[str, grpc.Channel]) -> None:
    """A probe has no database: the request must contain what a gateway would fill in."""
    probe = probe_service_pb2_grpc.ProbeServiceStub(channels["probe"])
    request = probe_service_pb2.PreflightFineTuningJobRequest()
    with pytest.raises(grpc.RpcError) as caught:
        probe.PreflightFineTuningJob(request, timeout=10)
    assert refusal(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG")
    request.spec.base_model = "smollm2-135m"
    request.spec.training_data.add(dataset="ds_1")
    with pytest.raises(grpc.RpcError) as caught:
        probe.PreflightFineTuningJob(request, timeout=10)
    assert refusal(caught.value) == (grpc.StatusCode.INVALID_ARGUMENT, "DATASET_NOT_FOUND")


def test_exporter_lists_its_formats(channels: dict[str, grpc.Channel], processes: dict[str, Process]) -> None:
    stub = exporter_service_pb2_grpc.ExporterServiceStub(channels["exporter"])
    answer = stub.GetExporter(exporter_service_pb2.GetExporterRequest(), timeout=10)
    assert list(answer.formats) == [
        fine_tuning_job_spec_pb2.EXPORT_FORMAT_ADAPTER,
        fine_tuning_job_spec_pb2.EXPORT_FORMAT_MERGED,
        fine_tuning_job_spec_pb2.EXPORT_FORMAT_GGUF,
        fine_tuning_job_spec_pb2.EXPORT_FORMAT_GGUF_ADAPTER,
    ]
    assert (answer.node.service, answer.node.address) == ("exporter", processes["exporter"].address)


def test_serving_processes_load_neither_torch_nor_data_frames(
    channels: dict[str, grpc.Channel], processes: dict[str, Process]
) -> None:
    """Checked by the imports of the running processes after they have served requests: their memory is closed."""
    probe_service_pb2_grpc.ProbeServiceStub(channels["probe"]).GetHardware(
        probe_service_pb2.GetHardwareRequest(), timeout=10
    )
    heavy = {"torch", "transformers", "pandas", "pyarrow", "numpy", "tokenizers", "safetensors", "matplotlib"}
    for process in processes.values():
        imported = {line.rpartition("|")[2].strip() for line in process.lines if line.startswith("import time:")}
        assert "grpc" in imported
        assert not heavy & imported, process.name


def test_drained_trainer_keeps_running_and_claims_no_work(channels: dict[str, grpc.Channel]) -> None:
    stub = trainer_service_pb2_grpc.TrainerServiceStub(channels["trainer"])
    before = stub.GetTrainer(trainer_service_pb2.GetTrainerRequest(), timeout=10).node
    assert (before.id, before.service, before.pool, before.slots) == ("trainer-under-test", "trainer", "default", 1)
    assert not before.draining
    assert not stub.ListRuns(trainer_service_pb2.ListRunsRequest(), timeout=10).runs
    for _ in range(2):
        assert stub.DrainTrainer(trainer_service_pb2.DrainTrainerRequest(), timeout=10).node.draining
    assert stub.GetTrainer(trainer_service_pb2.GetTrainerRequest(), timeout=10).node.draining
    health = health_pb2_grpc.HealthStub(channels["trainer"])
    for answer in health.Watch(health_pb2.HealthCheckRequest(), timeout=10):
        if answer.status == health_pb2.HealthCheckResponse.NOT_SERVING:
            break


async def test_every_node_publishes_its_hardware(processes: dict[str, Process], nats: NatsServer) -> None:
    """Otherwise a user could not see which node has free memory for a job."""
    bus = await Bus.connect(nats.url, nats.user, nats.password, "test")
    await bus.ensure_streams()
    async with asyncio.timeout(20):
        while len(nodes := await bus.nodes()) < len(SERVICES):  # noqa: ASYNC110 - each says so in its own time
            await asyncio.sleep(0.1)
    await bus.close()
    assert {node.service for node in nodes} == set(SERVICES)
    for node in nodes:
        assert node.hardware.node_id == node.id
        assert node.hardware.cpu_cores >= 1
        assert node.hardware.memory_available_bytes > 0


def test_sigterm_ends_all_services_with_status_0(processes: dict[str, Process]) -> None:
    assert {name: process.stop() for name, process in processes.items()} == dict.fromkeys(SERVICES, 0)


@pytest.mark.parametrize("name", SERVICES)
def test_service_without_certificate_does_not_start(name: str) -> None:
    """Anybody who reaches its port, on loopback too, could drain a trainer."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("FTF_")}
    refused = subprocess.run(
        [sys.executable, "-m", f"services.{name}"], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    for setting in ("SERVICE_CERT", "SERVICE_KEY", "SERVICE_CA", "INSECURE=true"):
        assert f"FTF_{name.upper()}_{setting}" in refused.stderr
