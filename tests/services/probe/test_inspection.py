"""Datasets are validated and previewed: gateway, probe and its child as real processes."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.bus.event_bus import Bus
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceStub, add_DatasetServiceServicer_to_server
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource
from finetuneflow.v1.validation_pb2 import ValidationReport
from finetuneflow.v1.work_pb2 import Node
from gateway.passthrough import Passthrough
from gateway.servicers.datasets import Datasets, add_to_server
from gateway.sql.database import Database
from gateway.uploads import UploadLimits
from services.probe.datasets import DatasetsServicer
from services.probe.queries.query_runner import ServedQueries
from services.probe.settings import ProbeSettings
from tests.fakes.hub import Hub
from tests.gateway.serving import refusal, serving
from tests.servers.nats import NatsServer
from tests.tiny_models import make_tiny_model

ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(30)]


class DatasetServer:
    def __init__(self, stub: DatasetServiceStub) -> None:
        self.stub = stub

    async def upload(self, name: str, data: bytes) -> str:
        header = api.UploadDatasetRequest(header=api.UploadDatasetHeader(filename=name))
        answer = await self.stub.UploadDataset(iter([header, api.UploadDatasetRequest(chunk=data)]))
        dataset_id: str = answer.dataset.id
        return dataset_id

    async def validate(self, dataset: str, **more: Any) -> ValidationReport:
        source = DataSource(dataset=dataset, **more)
        request = api.ValidateDatasetRequest(source=source, base_model="tiny", max_length=256)
        report: ValidationReport = (await self.stub.ValidateDataset(request)).report
        return report


@pytest.fixture
async def server(tmp_path: Path, nats: NatsServer) -> AsyncIterator[DatasetServer]:
    model = await asyncio.to_thread(make_tiny_model, tmp_path / "tiny")
    settings = ProbeSettings(home=tmp_path / "home", models={"tiny": model})
    bus = await Bus.connect(nats.url, nats.user, nats.password, "test")
    await bus.ensure_streams()
    database = await Database.open(f"sqlite:///{tmp_path}/gateway.db")
    queries = ServedQueries(settings, Catalogue(settings.home, settings.models))
    probe = DatasetsServicer(queries)
    served = Datasets(database, ArtifactStore(settings.artifacts), UploadLimits(), Passthrough(bus))
    async with serving(api, "DatasetService", add_DatasetServiceServicer_to_server, probe) as address:
        await bus.put_node(Node(id="inspecting-probe", service="probe", address=address))
        async with (
            serving(api, "DatasetService", add_to_server, served) as gateway,
            grpc.aio.insecure_channel(gateway) as channel,
        ):
            yield DatasetServer(DatasetServiceStub(channel))
    await queries.close()
    await bus.close()
    await database.close()


async def test_dataset_is_validated_without_a_job(server: DatasetServer) -> None:
    """The response names rows and counts tokens, and comes from a process that has not loaded transformers."""
    rows = "".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]) + "nonsense\n"
    before = {name for name in sys.modules if name.partition(".")[0] == "transformers"}
    report = await server.validate(await server.upload("rows.jsonl", rows.encode()))
    assert {name for name in sys.modules if name.partition(".")[0] == "transformers"} == before
    assert report.verdict == 3
    assert [(p.row, p.reason, p.source) for p in report.problems] == [
        (32, "NOT_JSON", "training_data[0]"),
        (31, "DUPLICATE_ROW", "training_data[0]"),
    ]
    assert report.training_data.num_examples == 30
    assert report.training_data.percentiles[50] > 0
    assert report.job.total_steps_packed < report.job.total_steps
    assert 0 < report.job.packing_efficiency <= 1


async def test_csv_row_is_previewed_through_its_template(server: DatasetServer) -> None:
    """Otherwise a user would pay for a training without having seen which tokens are trained."""
    table = b"age,goal\n25,strength\n31,rest\n40,speed\n"
    template = '[{"question": "At {{ age }}?", "answer": {{ goal | tojson }}}, {"text": "second"}]'
    dataset = await server.upload("members.csv", table)
    source = DataSource(dataset=dataset, template=template.replace(', {"text": "second"}', ""))
    request = api.PreviewDatasetRequest(source=source, base_model="tiny", first_row=3, num_rows=1)
    (row,) = (await server.stub.PreviewDataset(request)).rows
    assert row.row == 3
    assert "At 31?" in row.text
    (span,) = row.trained_spans
    assert "".join(row.tokens[span.start : span.end]) == "rest<|im_end|>"
    assert [label for label in row.labels if label != -100] == list(row.input_ids[span.start : span.end])
    request.source.template = template
    request.num_rows = 2
    good, bad = (await server.stub.PreviewDataset(request)).rows
    assert (good.row, bad.row, bad.problem.reason) == (3, 3, "MISSING_COLUMN")


async def test_hub_dataset_is_validated_without_upload(server: DatasetServer, tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS) + "nonsense\n")
    with Hub(tmp_path, {"org/rows": {"a" * 40: folder}}).asked():
        report = await server.validate("hf://org/rows")
        found = await refusal(server.validate("hf://org/unknown"))
    assert [(problem.row, problem.reason) for problem in report.problems] == [(31, "NOT_JSON")]
    assert (found.reason, found.fields) == ("DATASET_NOT_FOUND", ("source.dataset",))


async def test_dataset_references_that_are_invalid_in_jobs_are_refused(server: DatasetServer) -> None:
    dataset = await server.upload("rows.jsonl", json.dumps(ROWS[0]).encode())
    found = await refusal(server.validate("ds_unknown"))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    found = await refusal(server.validate(dataset, format="poem"))
    assert found.reason == "INVALID_CONFIG"
    request = api.ValidateDatasetRequest(source=DataSource(dataset=dataset), base_model="tinny")
    found = await refusal(server.stub.ValidateDataset(request))
    assert found.reason == "MODEL_NOT_FOUND"
    request = api.PreviewDatasetRequest(source=DataSource(dataset=dataset), base_model="tiny", num_rows=101)
    found = await refusal(server.stub.PreviewDataset(request))
    assert found.fields == ("num_rows",)
