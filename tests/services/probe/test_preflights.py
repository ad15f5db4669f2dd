"""Preflights and dry runs without a job, through gateway, probe and its child."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from sqlmodel import select

from chassis.bus.event_bus import Bus
from chassis.server.grpc_server import Mount, serve
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.v1 import (
    dataset_service_pb2,
    dataset_service_pb2_grpc,
    fine_tuning_service_pb2,
    fine_tuning_service_pb2_grpc,
    probe_service_pb2,
    probe_service_pb2_grpc,
)
from finetuneflow.v1.estimate_pb2 import FIT_VERDICT_COMFORTABLE, FIT_VERDICT_IMPOSSIBLE
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.validation_pb2 import (
    VALIDATION_VERDICT_OK,
    VALIDATION_VERDICT_REFUSED,
    VALIDATION_VERDICT_WARNINGS,
)
from finetuneflow.v1.work_pb2 import Node
from gateway.access.interceptor import OpenInterceptor
from gateway.observed_speeds import ObservedSpeeds
from gateway.passthrough import Passthrough
from gateway.planning_target import PlanningTargets
from gateway.preflights import Preflights as GatewayPreflights
from gateway.servicers import datasets, fine_tuning
from gateway.servicers.probe import Probe
from gateway.servicers.work import WorkMethods
from gateway.sql.database import Database
from gateway.sql.tables import Work
from gateway.uploads import UploadLimits
from gateway.work.kinds import FINE_TUNING_JOB
from gateway.work.ledger import Ledger
from services.probe.estimates import Estimates
from services.probe.queries.query_runner import ServedQueries
from services.probe.servicer import ProbeServicer
from services.probe.settings import ProbeSettings
from tests.fakes.hub import Hub
from tests.gateway.conftest import Recorder
from tests.gateway.serving import refusal, serving
from tests.servers.nats import NatsServer
from tests.tiny_models import make_tiny_model

GIB = 2**30
TEMPLATE = "{repo_id}/resolve/{revision}/{filename}"
ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(120)]
OTHERS: dict[str, dict[str, Any]] = {
    "remote": {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}},
    "encoder": {"architectures": ["BertForMaskedLM"]},
    "gptq": {"quantization_config": {"quant_method": "gptq"}},
    "pickled": {},
}
CPU = {"cpu_model": "Test", "cpu_cores": 4, "memory_total_bytes": 8 * GIB, "memory_available_bytes": 6 * GIB}


class GatewayWithProbe:
    def __init__(self, channel: grpc.aio.Channel, bus: Bus, database: Database, models: dict[str, Path]) -> None:
        self.probe = probe_service_pb2_grpc.ProbeServiceStub(channel)
        self.datasets = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        self.jobs = fine_tuning_service_pb2_grpc.FineTuningServiceStub(channel)
        self.bus, self.database, self.models = bus, database, models

    async def upload(self, rows: list[Any]) -> str:
        data = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows).encode()
        header = dataset_service_pb2.UploadDatasetHeader(filename="rows.jsonl")
        messages = [{"header": header}, {"chunk": data}]
        answer = await self.datasets.UploadDataset(
            iter([dataset_service_pb2.UploadDatasetRequest(**message) for message in messages])
        )
        dataset_id: str = answer.dataset.id
        return dataset_id

    async def trainer(self, node_id: str = "trainer", pool: str = "default", **hardware: Any) -> None:
        machine = Hardware(**{**CPU, "disk_free_bytes": 100 * GIB, "packages": {"bitsandbytes": "1"}, **hardware})
        await self.bus.put_node(Node(id=node_id, service="trainer", pool=pool, hardware=machine))

    async def preflight(self, dataset: str, **spec: Any) -> probe_service_pb2.PreflightFineTuningJobResponse:
        request = probe_service_pb2.PreflightFineTuningJobRequest(spec=spec_of(dataset, **spec))
        answer: probe_service_pb2.PreflightFineTuningJobResponse = await self.probe.PreflightFineTuningJob(request)
        return answer

    async def dry_run(self, dataset: str, **spec: Any) -> fine_tuning_service_pb2.CreateFineTuningJobResponse:
        request = fine_tuning_service_pb2.CreateFineTuningJobRequest(
            spec=spec_of(dataset, **spec), request_id="dry", validate_only=True
        )
        answer: fine_tuning_service_pb2.CreateFineTuningJobResponse = await self.jobs.CreateFineTuningJob(request)
        return answer


def spec_of(dataset: str, **fields: Any) -> FineTuningJobSpec:
    values = {"base_model": "tiny", "training_data": [{"dataset": dataset}], "recipe": "cpu-demo"} | fields
    return ParseDict(values, FineTuningJobSpec())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
async def gateway(tmp_path: Path, tiny: Path, nats: NatsServer) -> AsyncIterator[GatewayWithProbe]:
    models = {"tiny": tiny}
    for name, config in OTHERS.items():
        models[name] = tmp_path / name
        await asyncio.to_thread(shutil.copytree, tiny, models[name])
        told = json.loads((tiny / "config.json").read_text()) | config
        (models[name] / "config.json").write_text(json.dumps(told))
    for file in models["pickled"].glob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    settings = ProbeSettings(home=tmp_path / "home", models=models, node_id="preflighting")
    catalogue = Catalogue(settings.home, settings.models)
    bus = await Bus.connect(nats.url, nats.user, nats.password, "test")
    await bus.ensure_streams()
    for node in await bus.nodes():
        await bus.remove_node(node.service, node.id)
    database = await Database.open(f"sqlite:///{tmp_path}/gateway.db")
    store = ArtifactStore(settings.artifacts)
    queries = ServedQueries(settings, catalogue)
    probe = ProbeServicer(settings, Estimates(catalogue, settings.home), queries)
    passthrough = Passthrough(bus)
    machines = PlanningTargets(passthrough, ObservedSpeeds(database))
    preflights = GatewayPreflights(database, passthrough, machines, catalogue)
    told = Recorder()
    ledger = Ledger(database, told.publish, told.offer, told.discard)
    servicers = [
        (
            dataset_service_pb2,
            "DatasetService",
            datasets.add_to_server,
            datasets.Datasets(database, store, UploadLimits(), passthrough),
        ),
        (
            fine_tuning_service_pb2,
            "FineTuningService",
            fine_tuning.add_to_server,
            fine_tuning.FineTuning(WorkMethods(FINE_TUNING_JOB, ledger, None, store), catalogue, preflights),  # type: ignore[arg-type]
        ),
        (
            probe_service_pb2,
            "ProbeService",
            probe_service_pb2_grpc.add_ProbeServiceServicer_to_server,
            Probe(passthrough, machines, preflights),
        ),
    ]
    add = probe_service_pb2_grpc.add_ProbeServiceServicer_to_server
    mounts = [
        Mount(module.DESCRIPTOR.services_by_name[name], add, servicer) for module, name, add, servicer in servicers
    ]
    async with serving(probe_service_pb2, "ProbeService", add, probe) as behind:
        await bus.put_node(Node(id="preflighting", service="probe", address=behind))
        server = await serve(*mounts, listen="127.0.0.1:0", interceptors=[OpenInterceptor()])
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield GatewayWithProbe(channel, bus, database, models)
        await server.stop(0)
    await queries.close()
    await bus.close()
    await database.close()


async def test_preflight_reports_everything_about_a_job_and_stores_nothing(gateway: GatewayWithProbe) -> None:
    """Resolved settings with their reasons, counts, memory by part, disk and duration."""
    await gateway.trainer()
    found = await gateway.preflight(await gateway.upload(ROWS))
    assert found.report.verdict == VALIDATION_VERDICT_OK
    assert (found.result.training_data.num_examples, found.result.evaluation_data.num_examples) == (108, 12)
    assert found.result.total_steps == 14
    assert found.resolved_spec.hyperparameters.HasField("gradient_checkpointing")
    assert {"method", "hyperparameters.precision"} <= {each.field for each in found.resolutions}
    assert all(each.reason for each in found.resolutions)
    estimate = found.estimate
    assert (estimate.hardware, estimate.memory_free_bytes) == ("Test × 4", 6 * GIB)
    assert sum(part.size_bytes for part in estimate.memory) == estimate.memory_total_bytes
    assert estimate.duration_seconds > 0
    assert (estimate.disk.verdict, estimate.disk.holds_artifacts) == (FIT_VERDICT_COMFORTABLE, True)
    assert estimate.disk.checkpoint_bytes > 12 * estimate.num_trained_parameters
    assert found.report.validation.training_data == found.result.training_data
    assert found.result.base_model.num_parameters == estimate.num_parameters > 0


async def test_all_refusals_of_a_job_are_returned_at_once(gateway: GatewayWithProbe) -> None:
    """Otherwise a user would correct one fault at a time and upload the file once per fault."""
    await gateway.trainer(memory_available_bytes=GIB // 2, disk_free_bytes=1 << 16)
    dataset = await gateway.upload([*ROWS, '{"question": "?", "answer": ""}\n', "nonsense\n"])
    found = await gateway.preflight(dataset, lora={"target_modules": ["q_porj"]}, resources={"gpus": 1})
    report = found.report
    assert report.verdict == VALIDATION_VERDICT_REFUSED
    refusals = {each.reason: each for each in report.findings if each.violations}
    assert set(refusals) == {"BAD_DATA", "UNKNOWN_MODULE", "NO_GPU", "INSUFFICIENT_MEMORY", "DISK_TOO_SMALL"}
    assert all(each.advice and each.message for each in refusals.values())
    assert refusals["UNKNOWN_MODULE"].field == "lora.target_modules[0]"
    assert [each.row for each in report.validation.problems] == [122, 121], (
        "problems that refuse the job come before dropped rows"
    )
    assert found.estimate.disk.verdict == FIT_VERDICT_IMPOSSIBLE
    assert found.estimate.memory_upper_bytes > found.estimate.memory_free_bytes


async def test_dry_run_finds_every_mistake_of_questions_and_graders(gateway: GatewayWithProbe) -> None:
    """Found by the job, each would cost another upload and another wait."""
    dataset = await gateway.upload([{**row, "level": "easy", "id": 7} for row in ROWS])
    check = {"type": "string_check", "input": "{{sample.output_text}}", "operation": "like"}
    questions = await gateway.upload(
        [
            {"prompt": "x", "graders": []},
            {"prompt": "y", "graders": [{**check, "reference": "{{item.right}}"}]},
            {"prompt": "z", "graders": [{**check, "reference": "z"}]},
            {"graders": [{**check, "reference": "z"}]},
        ]
    )
    graders = [
        {**check, "name": "typo", "reference": "{{item.lvel}}"},
        {**check, "name": "right", "reference": "{{item.level}}"},
    ]
    found = await gateway.preflight(dataset, evaluation={"questions": questions, "graders": graders})
    assert found.report.verdict == VALIDATION_VERDICT_REFUSED
    (refused,) = [each for each in found.report.findings if each.reason == "BAD_QUESTIONS"]
    assert [each.field for each in refused.violations] == [f"evaluation.questions row {row}" for row in (1, 2, 4)]
    assert "And 2 more." in refused.message
    warned = [each.message for each in found.report.findings if each.reason == "GRADER_VALUE_MISSING"]
    assert len(warned) == 1 and "Grader typo needs item.lvel" in warned[0]
    (unused,) = [each for each in found.report.validation.problems if each.reason == "UNUSED_KEYS"]
    assert "id" in unused.message and "level" not in unused.message, "a grader reads it"


@pytest.mark.long
async def test_dry_run_refuses_a_gguf_form_that_llama_cpp_cannot_have(gateway: GatewayWithProbe) -> None:
    """It runs llama.cpp's converter in the confined process of a query."""
    dataset = await gateway.upload(ROWS)
    found = await gateway.preflight(dataset, export={"formats": ["EXPORT_FORMAT_ADAPTER", "EXPORT_FORMAT_GGUF"]})
    (refused,) = [each for each in found.report.findings if each.reason == "GGUF_UNSUPPORTED"]
    assert "how its tokenizer splits texts" in refused.message and refused.field == "export.formats"


async def test_unreadable_rows_cause_no_memory_refusal(gateway: GatewayWithProbe) -> None:
    """The report also contained a refusal for lack of memory, calculated for rows that do not exist."""
    await gateway.trainer(memory_available_bytes=GIB // 2)
    found = await gateway.preflight(await gateway.upload(["nonsense\n"]))
    assert {each.reason for each in found.report.findings if each.violations} == {"BAD_DATA"}


async def test_improvements_contain_figures_of_the_job(gateway: GatewayWithProbe) -> None:
    gpu = {
        "name": "NVIDIA GeForce RTX 4090",
        "memory_total_bytes": 24 * GIB,
        "memory_free_bytes": 23 * GIB,
        "bf16": True,
    }
    await gateway.trainer(cuda_available=True, gpus=[{**gpu, "compute_capability": "8.9"}])
    hyper = {"learning_rate": 0.02, "warmup_steps": 14, "num_epochs": 1, "precision": "PRECISION_FP16"}
    dataset = await gateway.upload([*ROWS, ROWS[0]])
    pool = {"pool": "empty"}
    found = await gateway.preflight(dataset, method="TRAINING_METHOD_QLORA", hyperparameters=hyper, resources=pool)
    assert found.report.verdict == VALIDATION_VERDICT_WARNINGS
    assert {each.reason for each in found.report.findings} >= {"DUPLICATES_DROPPED", "WARMUP_TOO_LONG", "NO_TRAINER"}
    better = {each.field.rpartition(".")[2]: each for each in found.report.improvements}
    assert {"learning_rate", "warmup_steps", "precision", "method"} <= set(better)
    assert (better["method"].current, better["method"].suggested) == ("qlora", "lora")
    assert "of 23.0 GiB free" in better["method"].reason
    assert found.estimate.price_per_hour > 0
    assert found.estimate.cost > 0


async def test_dry_run_returns_the_job_as_after_preflight(gateway: GatewayWithProbe) -> None:
    """The same response as for a real job, without an id; and a refusal where a real job would fail a minute later."""
    await gateway.trainer()
    dataset = await gateway.upload(ROWS)
    answer = await gateway.dry_run(dataset)
    job = answer.fine_tuning_job
    assert job.id == ""
    assert job.resolved_spec.hyperparameters.optim
    assert job.preflight.total_steps == 14
    assert job.resolutions
    assert answer.report.verdict == VALIDATION_VERDICT_OK
    bad = await gateway.upload(["nonsense\n"] * 60)
    refused = await refusal(gateway.dry_run(bad))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "BAD_DATA")
    assert refused.fields[0] == "training_data[0] row 1"
    refused = await refusal(gateway.dry_run("ds_unknown"))
    assert (refused.code, refused.fields) == (grpc.StatusCode.NOT_FOUND, ("spec.training_data[0].dataset",))
    async with gateway.database.read() as session:
        assert not (await session.exec(select(Work))).all()


async def test_each_reason_why_a_model_cannot_be_trained(
    gateway: GatewayWithProbe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a user would not know whether to ask the model's owner, use another model, or retry later."""
    dataset = await gateway.upload(ROWS)
    reasons = {
        "remote": "REMOTE_CODE_REFUSED",
        "encoder": "NOT_CAUSAL_LM",
        "gptq": "QUANTISED_WEIGHTS",
        "pickled": "NO_SAFETENSORS",
        "tinny": "MODEL_NOT_FOUND",
    }
    for name, reason in reasons.items():
        refused = await refusal(gateway.preflight(dataset, base_model=name))
        assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
        assert refused.fields == ("spec.base_model",)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    refused = await refusal(gateway.preflight(dataset, base_model="org/tiny"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "HUB_UNREACHABLE")


async def test_preflight_of_hub_model_downloads_no_weights(
    gateway: GatewayWithProbe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A preflight must not download 140 GB; the response says that the job will."""
    await gateway.trainer()
    dataset = await gateway.upload(ROWS)
    hub = Hub(gateway.models["tiny"])
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}/{TEMPLATE}")
    with hub.serving():
        found = await gateway.preflight(dataset, base_model="org/tiny")
        for name, reason in (("org/gated", "MODEL_GATED"), ("org/unknown", "MODEL_NOT_FOUND")):
            refused = await refusal(gateway.preflight(dataset, base_model=name))
            assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, reason)
    assert found.report.verdict == VALIDATION_VERDICT_OK
    (weights,) = gateway.models["tiny"].glob("*.safetensors")
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    assert found.estimate.disk.download_bytes == weights.stat().st_size - header
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert found.result.base_model.revision


async def test_hub_dataset_is_preflighted_like_an_uploaded_one(gateway: GatewayWithProbe, tmp_path: Path) -> None:
    """Alone and beside an uploaded one; a refusal says what to name instead."""
    await gateway.trainer()
    uploaded = await gateway.upload(ROWS[:60])
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[60:]))
    hub = Hub(gateway.models["tiny"], {"org/rows": {"a" * 40: folder}})
    sources = [{"dataset": "hf://org/rows"}, {"dataset": uploaded}]
    with hub.asked():
        found = await gateway.preflight("", training_data=sources)
        job = (await gateway.dry_run("", training_data=sources)).fine_tuning_job
        (folder / "train.csv").write_text("a,b\n")
        refused = await refusal(gateway.preflight("hf://org/rows"))
    assert found.report.verdict == VALIDATION_VERDICT_OK
    assert found.result.training_data.num_examples + found.result.evaluation_data.num_examples == 120
    pinned = f"hf://org/rows@{'a' * 40}/train.jsonl"
    assert [source.dataset for source in found.resolved_spec.training_data] == [pinned, uploaded]
    assert [each.pinned for each in found.result.hub_datasets] == [pinned]
    assert job.resolved_spec.training_data == found.resolved_spec.training_data
    assert job.resolved_spec.display_name == "tiny on org/rows"
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "SEVERAL_FILES")
    assert refused.fields == ("spec.training_data[0].dataset",)
    refused = await refusal(gateway.preflight("hf://org"))
    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_CONFIG")
