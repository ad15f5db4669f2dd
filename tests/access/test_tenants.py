"""Two tenants: whatever one has, the other is told that it does not exist."""

import asyncio
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.message import Message

from chassis.store.artifact_store import ArtifactStore
from finetuneflow.v1 import (
    artifact_service_pb2,
    dataset_service_pb2,
    evaluation_service_pb2,
    evaluator_service_pb2,
    export_service_pb2,
    fine_tuning_service_pb2,
    key_service_pb2,
    model_service_pb2,
    probe_service_pb2,
)
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, ExportResult
from gateway.identifiers import new_id
from gateway.sql.database import Database
from gateway.sql.tables import SavedArtifact, SavedResult, Work, now
from tests.access.conftest import Tokens
from tests.access.gateway import METHODS, AccessGateway
from tests.gateway.serving import add_job

ROWS = b'{"question": "of the victim", "answer": "secret row"}\n'


@dataclass(frozen=True)
class Owned:
    """Ids of the resources of tenant acme."""

    job: str
    evaluation: str
    export: str
    artifact: str
    dataset: str
    upload_request: str
    job_request: str
    key: str


@pytest.fixture(scope="module")
def owned(access_gateway: AccessGateway, tokens: Tokens) -> Owned:
    uploading = [
        dataset_service_pb2.UploadDatasetRequest(
            header=dataset_service_pb2.UploadDatasetHeader(
                filename="rows.jsonl", size_bytes=len(ROWS), sha256=hashlib.sha256(ROWS).hexdigest(), request_id="mine"
            )
        ),
        dataset_service_pb2.UploadDatasetRequest(chunk=ROWS),
    ]
    with grpc.insecure_channel(access_gateway.address) as channel:
        upload = channel.stream_unary(
            "/finetuneflow.v1.DatasetService/UploadDataset",
            request_serializer=dataset_service_pb2.UploadDatasetRequest.SerializeToString,
            response_deserializer=dataset_service_pb2.UploadDatasetResponse.FromString,
        )
        metadata = (("authorization", f"Bearer {tokens.member}"),)
        dataset = upload(iter(uploading), metadata=metadata, timeout=60).dataset.id
    rows = asyncio.run(_insert(access_gateway))
    return Owned(
        dataset=dataset,
        upload_request="mine",
        job_request="request-of-acme",
        key=tokens.member.split("_")[1],
        **rows,
    )


async def _insert(gateway: AccessGateway) -> dict[str, str]:
    """Inserts a finished job with its results, as the services would have left them."""
    database = await Database.open(gateway.database)
    job_id = await add_job(database, tenant="acme", state="JOB_STATE_SUCCEEDED", request_id="request-of-acme")
    ids = {"job": job_id, "artifact": new_id("ar"), "evaluation": new_id("eval"), "export": new_id("export")}
    path = f"jobs/{job_id}/export/1/report.md"
    file = gateway.home / "report.md"
    file.write_bytes(b"report of acme")
    ArtifactStore((gateway.home / "artifacts").as_uri()).put_file(file, f"acme/{path}")
    async with database.write() as session:
        session.add(
            SavedArtifact(
                id=ids["artifact"],
                tenant="acme",
                work_id=job_id,
                name="export/report.md",
                kind="export_file",
                path=path,
                sha256=hashlib.sha256(b"report of acme").hexdigest(),
                size_bytes=14,
                media_type="text/markdown",
                create_time=now(),
            )
        )
        for kind, message in (("evaluation", EvaluationResult()), ("export", ExportResult())):
            work = await session.get(Work, job_id)
            assert work is not None
            session.add(
                Work(
                    **{
                        **{key: getattr(work, key) for key in Work.model_fields},
                        "id": ids[kind],
                        "kind": kind,
                        "job_id": job_id,
                        "request_id": None,
                        "spec": b"",
                    }
                )
            )
            await session.flush()
            session.add(
                SavedResult(
                    id=ids[kind],
                    tenant="acme",
                    kind=kind,
                    job_id=job_id,
                    work_id=ids[kind],
                    result=message.SerializeToString(),
                    create_time=now(),
                )
            )
    await database.close()
    return ids


def _requests(owned: Owned) -> Iterator[tuple[str, Message]]:
    """Every method that takes an id, with ids of the other tenant."""
    job, model = owned.job, f"ft:{owned.job}"
    source = DataSource(dataset=owned.dataset)
    spec = FineTuningJobSpec(base_model="smollm2-135m", training_data=[source])
    jobs = fine_tuning_service_pb2
    for verb in ("Get", "Cancel", "Pause", "Resume", "Delete", "Watch"):
        yield f"FineTuningService.{verb}FineTuningJob", getattr(jobs, f"{verb}FineTuningJobRequest")(job_id=job)
    yield "FineTuningService.ListFineTuningJobEvents", jobs.ListFineTuningJobEventsRequest(job_id=job)
    yield "FineTuningService.ListCheckpoints", jobs.ListCheckpointsRequest(job_id=job)
    yield "FineTuningService.GetMetrics", jobs.GetMetricsRequest(job_id=job)
    yield "FineTuningService.CreateFineTuningJob", jobs.CreateFineTuningJobRequest(spec=spec)
    yield "FineTuningService.CreateFineTuningJob", jobs.CreateFineTuningJobRequest(spec=spec, validate_only=True)
    further = FineTuningJobSpec(start_from=model, training_data=[DataSource(dataset="hf://org/rows")])
    yield "FineTuningService.CreateFineTuningJob", jobs.CreateFineTuningJobRequest(spec=further)
    yield "ProbeService.PreflightFineTuningJob", probe_service_pb2.PreflightFineTuningJobRequest(spec=further)
    for noun, api in (("Evaluation", evaluation_service_pb2), ("Export", export_service_pb2)):
        own = getattr(owned, noun.lower())
        for verb in ("Get", "Cancel", "Delete", "Watch"):
            request = getattr(api, f"{verb}{noun}Request")(**{f"{noun.lower()}_id": own})
            yield f"{noun}Service.{verb}{noun}", request
        events = getattr(api, f"List{noun}EventsRequest")(**{f"{noun.lower()}_id": own})
        yield f"{noun}Service.List{noun}Events", events
        yield f"{noun}Service.Create{noun}", getattr(api, f"Create{noun}Request")(model=model)
    yield "ArtifactService.ListArtifacts", artifact_service_pb2.ListArtifactsRequest(job_id=job)
    yield "ArtifactService.DownloadArtifact", artifact_service_pb2.DownloadArtifactRequest(artifact_id=owned.artifact)
    data = dataset_service_pb2
    yield "DatasetService.GetDataset", data.GetDatasetRequest(dataset_id=owned.dataset)
    yield "DatasetService.DeleteDataset", data.DeleteDatasetRequest(dataset_id=owned.dataset)
    yield "DatasetService.ValidateDataset", data.ValidateDatasetRequest(source=source, base_model="smollm2-135m")
    yield "DatasetService.PreviewDataset", data.PreviewDatasetRequest(source=source, base_model="smollm2-135m")
    yield "ModelService.GetModel", model_service_pb2.GetModelRequest(model_id=model)
    yield "ProbeService.PreflightFineTuningJob", probe_service_pb2.PreflightFineTuningJobRequest(spec=spec)
    yield "KeyService.RevokeKey", key_service_pb2.RevokeKeyRequest(key_id=owned.key)
    # Ids written differently.
    for other in (job.upper(), job.lower(), f" {job}", f"{job}\x00", f"../acme/{job}", f"acme/{job}", "%", "*", ""):
        yield "FineTuningService.GetFineTuningJob", jobs.GetFineTuningJobRequest(job_id=other)


def test_ids_of_another_tenant_are_not_found(access_gateway: AccessGateway, tokens: Tokens, owned: Owned) -> None:
    """The answer must not even tell that the id exists: the message names only what the caller has sent."""
    requests = list(_requests(owned))
    assert len({name for name, _ in requests}) >= 24
    for name, request in requests:
        answer = access_gateway.call(name, tokens.other_member, request)
        assert answer.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT), (name, str(answer))
        assert "secret row" not in answer.message
    owner = access_gateway.call(
        "FineTuningService.GetFineTuningJob",
        tokens.member,
        fine_tuning_service_pb2.GetFineTuningJobRequest(job_id=owned.job),
    )
    assert owner.code is grpc.StatusCode.OK, owner


def test_operator_does_not_see_the_data_of_a_tenant(
    access_gateway: AccessGateway, tokens: Tokens, owned: Owned
) -> None:
    """Who manages the system has no part in its users' data; a key of the tenant, whose creation is audited, has."""
    request = dataset_service_pb2.GetDatasetRequest(dataset_id=owned.dataset)
    answer = access_gateway.call("DatasetService.GetDataset", tokens.operator, request)
    assert answer.code is grpc.StatusCode.NOT_FOUND


def test_lists_show_only_what_the_tenant_has(access_gateway: AccessGateway, tokens: Tokens, owned: Owned) -> None:
    listed = [
        name
        for name, method in METHODS.items()
        if method.name.startswith("List") and not any(field.name.endswith("_id") for field in method.input_type.fields)
    ]
    assert "FineTuningService.ListFineTuningJobs" in listed
    for name in listed:
        shown = str(access_gateway.call(name, tokens.other_member).responses)
        for value in vars(owned).values():
            assert value not in shown, (name, value)


def test_request_id_of_another_tenant_is_free(access_gateway: AccessGateway, tokens: Tokens, owned: Owned) -> None:
    """Neither the other's upload nor its job may come back for a request_id that two tenants have chosen alike."""
    request = dataset_service_pb2.GetUploadRequest(request_id=owned.upload_request)
    answer = access_gateway.call("DatasetService.GetUpload", tokens.other_member, request)
    if answer.code is grpc.StatusCode.OK:
        assert not answer.responses[0].received_bytes
        assert not answer.responses[0].dataset.id
    else:
        assert answer.code is grpc.StatusCode.NOT_FOUND, answer


def test_generate_from_a_model_of_another_tenant_is_refused(
    access_gateway: AccessGateway, tokens: Tokens, owned: Owned
) -> None:
    request = evaluator_service_pb2.GenerateRequest(model=f"ft:{owned.job}", prompt="What do you know?")
    answer = access_gateway.call("EvaluatorService.Generate", tokens.other_member, request)
    assert answer.code is grpc.StatusCode.NOT_FOUND, answer
