"""Recommendations and estimates through the gateway use the trainers' machines and the speeds of finished jobs."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from chassis.bus.event_bus import Bus
from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.config.spec_proto import config_to_spec
from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.estimate_pb2 import FIT_VERDICT_COMFORTABLE
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.fine_tuning_job_spec_pb2 import TRAINING_METHOD_LORA, FineTuningJobSpec
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware
from finetuneflow.v1.probe_service_pb2_grpc import ProbeServiceStub, add_ProbeServiceServicer_to_server
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, DataStatistics, PreflightResult, TrainingResult
from finetuneflow.v1.work_pb2 import Node, Run
from gateway.observed_speeds import ObservedSpeeds
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.preflights import Preflights as GatewayPreflights
from gateway.servicers.probe import Probe
from gateway.sql.database import Database
from gateway.sql.tables import Work
from gateway.work.ledger import Ledger
from gateway.work.worker_requests import WorkerRequests
from services.probe.estimates import Estimates
from services.probe.queries.query_runner import ServedQueries
from services.probe.servicer import ProbeServicer
from services.probe.settings import ProbeSettings
from tests.gateway.conftest import Recorder
from tests.gateway.jobs import Worker, create
from tests.gateway.serving import refusal, serving
from tests.servers.nats import NatsServer

GIB = 2**30
H100 = Gpu(name="NVIDIA H100 80GB HBM3", memory_total_bytes=80 * GIB, memory_free_bytes=79 * GIB, bf16=True)


@pytest.fixture
async def probe(nats_server: NatsServer, database: Database, tmp_path: Path) -> AsyncIterator[ProbeServiceStub]:
    """A gateway's ProbeService with a real probe and two trainers that publish their machines."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    estimates = Estimates(Catalogue(tmp_path), tmp_path)
    settings = ProbeSettings(home=tmp_path, node_id="p")
    servicer = ProbeServicer(settings, estimates, ServedQueries(settings, Catalogue(tmp_path)))
    add = add_ProbeServiceServicer_to_server
    passthrough = Passthrough(bus)
    machines = PlanningTargets(passthrough, ObservedSpeeds(database))
    gateway = Probe(passthrough, machines, GatewayPreflights(database, passthrough, machines, Catalogue(tmp_path)))
    async with (
        serving(api, "ProbeService", add, servicer) as behind,
        serving(api, "ProbeService", add, gateway) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        await bus.put_node(Node(id="p", service="probe", address=behind))
        small = Hardware(cpu_model="Small", cpu_cores=2, memory_total_bytes=8 * GIB, memory_available_bytes=6 * GIB)
        await bus.put_node(Node(id="small", service="trainer", pool="slow", hardware=small))
        large = Hardware(memory_total_bytes=256 * GIB, cuda_available=True, gpus=[H100], packages={"bitsandbytes": "1"})
        await bus.put_node(Node(id="large", service="trainer", hardware=large))
        yield ProbeServiceStub(channel)
    await bus.close()


async def test_estimate_is_for_trainer_with_most_free_memory_unless_node_is_given(probe: ProbeServiceStub) -> None:
    """The probe's own hardware is irrelevant: the training runs elsewhere."""
    Request = api.RecommendMethodRequest
    found = (await probe.RecommendMethod(Request(base_model="llama-3.1-8b"))).recommendation
    assert found.estimate.hardware == H100.name
    assert (found.method, found.verdict) == (TRAINING_METHOD_LORA, FIT_VERDICT_COMFORTABLE)
    named = (await probe.RecommendMethod(Request(base_model="smollm2-135m", node_id="small"))).recommendation
    assert named.estimate.hardware == "Small × 2"
    assert named.estimate.memory_free_bytes == 6 * GIB
    pooled = api.RecommendMethodRequest(base_model="smollm2-135m", spec={"resources": {"pool": "slow"}})
    assert (await probe.RecommendMethod(pooled)).recommendation.estimate.hardware == "Small × 2"
    ghost = await refusal(probe.RecommendMethod(Request(base_model="smollm2-135m", node_id="ghost")))
    assert (ghost.code, ghost.reason) == (grpc.StatusCode.NOT_FOUND, "NODE_NOT_FOUND")
    unknown = await refusal(probe.RecommendMethod(Request(base_model="smollm3-135m")))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MODEL_NOT_FOUND")


async def add_finished_job(database: Database) -> None:
    """Adds a job that has trained 50,000 tokens/s on an H100."""
    config = job_config({"base_model": "smollm2-135m", "training_data": [{"dataset": "d"}], "method": "lora"})
    hyper = config.hyperparameters.model_copy(
        update={"precision": "bf16", "optim": "adamw_torch", "gradient_checkpointing": False}
    )
    config = config.model_copy(update={"hyperparameters": hyper})
    preflight = PreflightResult(
        base_model=BaseModelIdentity(id="smollm2-135m", num_parameters=134_515_008),
        training_data=DataStatistics(mean_tokens=100),
        hardware=Hardware(gpus=[H100], cuda_available=True),
    )
    async with database.write() as session:
        session.add(
            Work(
                id="ftjob_1", kind="fine_tuning_job", tenant="default", request_sha256="", spec=b"", pool="default",
                max_attempts=1,
                state="SUCCEEDED", stage="EXPORT", create_time=1, update_time=1,
                config=ConfigResolved(resolved_spec=config_to_spec(config)).SerializeToString(),
                preflight=preflight.SerializeToString(),
                training=TrainingResult(train_tokens_per_second=50_000).SerializeToString(),
            )
        )  # fmt: skip


async def test_duration_estimate_uses_measured_speed_of_earlier_jobs(
    probe: ProbeServiceStub, database: Database
) -> None:
    """The first job is estimated from a data sheet, later ones from the measured speed."""
    spec = FineTuningJobSpec(base_model="smollm2-135m", method=TRAINING_METHOD_LORA)
    request = api.EstimateResourcesRequest(spec=spec, num_examples=1000, mean_tokens=100, longest_row=200)
    before = (await probe.EstimateResources(request)).estimate
    assert (before.num_observations, before.num_tokens) == (0, 300_000)
    assert before.duration_low_seconds < before.duration_seconds < before.duration_high_seconds

    await add_finished_job(database)
    after = (await probe.EstimateResources(request)).estimate
    assert after.num_observations == 1
    assert after.tokens_per_second == pytest.approx(50_000, rel=0.1)
    assert "measured in 1 earlier training" in after.speed_basis
    before_span = before.duration_high_seconds / before.duration_low_seconds
    assert after.duration_high_seconds / after.duration_low_seconds < before_span


@pytest.mark.parametrize("num_examples", [0, 1000])
@pytest.mark.parametrize("mean", [float("inf"), float("nan"), -1.0, 1e300])
async def test_estimate_with_too_many_tokens_is_refused(
    probe: ProbeServiceStub, mean: float, num_examples: int
) -> None:
    spec = FineTuningJobSpec(base_model="smollm2-135m")
    request = api.EstimateResourcesRequest(spec=spec, num_examples=num_examples, mean_tokens=mean)
    refused = await refusal(probe.EstimateResources(request))
    assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
    assert "mean_tokens" in str(refused)


async def test_estimate_for_gpu_that_no_node_has(probe: ProbeServiceStub) -> None:
    """The GPU's name gives memory, price and cost."""
    spec = FineTuningJobSpec(base_model="meta-llama/Llama-3.1-8B-Instruct")
    request = api.EstimateResourcesRequest(
        spec=spec, memory_bytes=24 * GIB, gpu="RTX 4090", num_examples=5000, mean_tokens=300, longest_row=1024
    )
    found = (await probe.EstimateResources(request)).estimate
    assert found.hardware == "RTX 4090"
    assert found.price_per_hour == 0.30
    assert found.cost == pytest.approx(found.duration_seconds / 3600 * 0.30)
    assert sum(part.size_bytes for part in found.memory) == found.memory_total_bytes < found.memory_upper_bytes
    assert all(part.description for part in found.memory)
    answer = await probe.RecommendMethod(api.RecommendMethodRequest(matrix=True))
    assert len(answer.matrix.cells) == 28
    assert not answer.HasField("recommendation")
    for wrong in (api.RecommendMethodRequest(), api.RecommendMethodRequest(base_model="phi-4", gpu="RTX 4090")):
        refused = await refusal(probe.RecommendMethod(wrong))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")


async def test_estimate_for_several_gpus_is_that_of_each_and_the_price_of_all(probe: ProbeServiceStub) -> None:
    """Memory decides whether the job fits on each GPU; all of them are paid for."""
    spec = FineTuningJobSpec(base_model="llama-3.1-8b", method=TRAINING_METHOD_LORA)
    request = api.EstimateResourcesRequest(spec=spec, memory_bytes=24 * GIB, gpu="RTX 4090", num_examples=5000)
    one = (await probe.EstimateResources(request)).estimate
    assert (one.world_size, one.parallelism, one.parallelism_reason) == (1, "", "")
    request.spec.resources.gpus = 4
    four = (await probe.EstimateResources(request)).estimate
    assert (four.world_size, four.parallelism, four.hardware) == (4, "ddp", "RTX 4090")
    assert "for each process" in four.parallelism_reason
    assert four.price_per_hour == pytest.approx(4 * one.price_per_hour)
    assert 3 * one.tokens_per_second < four.tokens_per_second < 4 * one.tokens_per_second
    request.spec.resources.parallelism = "zero2_offload"
    offloaded = (await probe.EstimateResources(request)).estimate
    assert (offloaded.parallelism, offloaded.parallelism_reason) == ("zero2_offload", "named by the job")
    assert 0 < offloaded.host_memory_bytes < offloaded.host_memory_upper_bytes
    request.ClearField("memory_bytes")
    request.ClearField("gpu")
    refused = await refusal(probe.EstimateResources(request))
    assert refused.reason == "NO_GPU"


async def test_job_is_planned_for_trainer_hardware(
    nats_server: NatsServer, database: Database, ledger: Ledger, recorder: Recorder
) -> None:
    """Planned for a probe without a GPU, it would train in float32. Planned for the memory that another job leaves
    free, it would be refused although all memory is free after that job."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    machines = PlanningTargets(Passthrough(bus), ObservedSpeeds(database))
    acceptance = WorkerRequests(ledger, machines)

    async def planned_for() -> Hardware:
        await create(ledger)
        return (await Worker(acceptance).claim(recorder.offered[-1])).assignment.hardware

    assert not (await planned_for()).node_id, "without a trainer, the probe's own hardware is used"
    taken = Gpu(name="GPU", memory_total_bytes=80 * GIB, memory_free_bytes=2 * GIB)
    large = Hardware(memory_total_bytes=256 * GIB, cuda_available=True, gpus=[taken])
    await bus.put_node(Node(id="large", service="trainer", pool="default", hardware=large))
    other = Hardware(memory_total_bytes=512 * GIB, cuda_available=True, gpus=[H100, H100])
    await bus.put_node(Node(id="other", service="trainer", pool="other", hardware=other))
    found = await planned_for()
    assert (found.node_id, found.gpus[0].memory_free_bytes) == ("large", 2 * GIB), (
        "memory of other processes is not free"
    )
    await bus.put_node(Node(id="large", service="trainer", pool="default", hardware=large, runs=[Run(job_id="j")]))
    assert (await planned_for()).gpus[0].memory_free_bytes == 80 * GIB
    large.memory_available_bytes, large.memory_own_bytes, large.gpus[0].memory_own_bytes = 100 * GIB, 50 * GIB, 70 * GIB
    await bus.put_node(Node(id="large", service="trainer", pool="default", hardware=large, runs=[Run(job_id="j")]))
    found = await planned_for()
    assert (found.memory_available_bytes, found.gpus[0].memory_free_bytes) == (150 * GIB, 72 * GIB), (
        "what other programs take stays taken"
    )
    card = Gpu(name="GPU", memory_total_bytes=24 * GIB, memory_free_bytes=24 * GIB)
    pair = Hardware(memory_total_bytes=256 * GIB, cuda_available=True, gpus=[card, card])
    await bus.put_node(Node(id="pair", service="trainer", pool="default", hardware=pair))
    found = [await machines.that_trains("default", processes) for processes in (1, 2, 3)]
    assert [one and one.node_id for one in found] == ["large", "pair", "large"]
    await bus.close()


async def test_job_is_estimated_by_earlier_trainings(
    nats_server: NatsServer, database: Database, ledger: Ledger, recorder: Recorder
) -> None:
    """As a dry run of the same job is: its report compares the speed with the estimate."""
    bus = await Bus.connect(nats_server.url, nats_server.user, nats_server.password, "test")
    await bus.ensure_streams()
    await add_finished_job(database)
    await create(ledger)
    worker = Worker(WorkerRequests(ledger, PlanningTargets(Passthrough(bus), ObservedSpeeds(database))))
    (speed,) = (await worker.claim(recorder.offered[-1])).assignment.observed
    assert (speed.hardware, speed.tokens_per_second) == (H100.name, 50_000)
    await bus.close()
