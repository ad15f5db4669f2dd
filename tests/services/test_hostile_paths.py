"""Fields of a request that become parts of paths are checked by the probe itself, not only by the gateway."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from chassis.store.artifact_store import ArtifactStore
from engine.errors import SystemFailure
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1 import dataset_service_pb2_grpc, probe_service_pb2, probe_service_pb2_grpc
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.work_pb2 import Assignment
from services.attempt_inputs import dataset_files, token_shards
from tests.services.conftest import Process

SHA256 = hashlib.sha256(b"rows").hexdigest()
ATTACKS = [
    ({"sha256": "../../nats/nats.conf"}, "sha256"),
    ({"sha256": "/etc/passwd"}, "sha256"),
    ({"sha256": ""}, "sha256"),
    ({"sha256": f"{SHA256}\n"}, "sha256"),
    ({"filename": "../../../secret.txt"}, "filename"),
    ({"filename": "/etc/passwd"}, "filename"),
    ({"filename": ".."}, "filename"),
    ({"filename": ""}, "filename"),
    ({"filename": "rows\x00.txt"}, "filename"),
    ({"path": "../other/datasets/ds_1/rows.txt"}, "path"),
    ({"path": "/etc/passwd"}, "path"),
    ({"path": ""}, "path"),
    ({"path": "datasets\\..\\rows.txt"}, "path"),
    ({"id": "../../x"}, "id"),
    ({"id": ""}, "id"),
]


def dataset(**changed: str) -> Dataset:
    valid = {"id": "ds_1", "filename": "rows.txt", "path": "datasets/ds_1/rows.txt", "sha256": SHA256}
    return Dataset(**(valid | changed))


def refused_fields(call: Callable[..., Any], request: Any) -> list[str]:
    """Returns the fields that an INVALID_ARGUMENT names."""
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert any(detail.Unpack(bad) for detail in status.details)
    return [violation.field for violation in bad.field_violations]


@pytest.mark.parametrize(("changed", "field"), ATTACKS, ids=lambda value: repr(value))
def test_probe_reads_no_file_that_a_field_of_a_dataset_leads_to(
    processes: dict[str, Process], changed: dict[str, str], field: str
) -> None:
    """Whoever reaches the probe's port would otherwise read the broker's password, or any file of the machine."""
    secret = processes["probe"].home / "nats" / "nats.conf"
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("password: hunter2")
    with grpc.insecure_channel(processes["probe"].address) as channel:
        datasets = dataset_service_pb2_grpc.DatasetServiceStub(channel)
        source = DataSource(dataset="ds_1")
        named: dict[str, Any] = {"source": source, "base_model": "smollm2-135m", "tenant": "default"}
        preview = api.PreviewDatasetRequest(dataset=dataset(**changed), **named)
        assert refused_fields(datasets.PreviewDataset, preview) == [f"dataset.{field}"]
        validate = api.ValidateDatasetRequest(dataset=dataset(**changed), **named)
        assert refused_fields(datasets.ValidateDataset, validate) == [f"dataset.{field}"]
        probe = probe_service_pb2_grpc.ProbeServiceStub(channel)
        spec = FineTuningJobSpec(base_model="smollm2-135m", training_data=[source])
        preflight = probe_service_pb2.PreflightFineTuningJobRequest(
            spec=spec, datasets=[dataset(**changed)], tenant="default"
        )
        assert refused_fields(probe.PreflightFineTuningJob, preflight) == [f"datasets[0].{field}"]


@pytest.mark.parametrize("tenant", ["", "..", "../..", "/etc", "default/../other", "a\x00b", "."])
def test_probe_reads_no_folder_that_a_tenant_leads_to(processes: dict[str, Process], tenant: str) -> None:
    with grpc.insecure_channel(processes["probe"].address) as channel:
        request = api.PreviewDatasetRequest(
            source=DataSource(dataset="ds_1"), base_model="smollm2-135m", tenant=tenant, dataset=dataset()
        )
        call = dataset_service_pb2_grpc.DatasetServiceStub(channel).PreviewDataset
        assert refused_fields(call, request) == ["tenant"]


@pytest.mark.parametrize(("changed", "field"), ATTACKS, ids=lambda value: repr(value))
def test_worker_writes_no_file_that_an_assignment_leads_to(tmp_path: Path, changed: dict[str, str], field: str) -> None:
    """An assignment comes over the broker; it must not write outside the attempt's folder."""
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    assignment = Assignment(tenant="default", datasets=[dataset(**changed)])
    with pytest.raises(SystemFailure, match=rf"datasets\[0\]\.{field}") as caught:
        asyncio.run(dataset_files(assignment, store, tmp_path / "work"))
    assert caught.value.reason == "BAD_ASSIGNMENT"


def test_worker_reads_no_shards_of_another_tenant(tmp_path: Path) -> None:
    store = ArtifactStore((tmp_path / "artifacts").as_uri())
    assignment = Assignment(tenant="default")
    assignment.preflight.shards_path = "../other/shards"
    with pytest.raises(SystemFailure, match="not a path below the tenant's folder"):
        asyncio.run(token_shards(assignment, store, tmp_path / "work"))
