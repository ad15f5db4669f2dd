"""A query fails in the same way with a server and without one."""

import hashlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from chassis.errors import ServiceError, from_caller_fault
from chassis.store.artifact_store import ArtifactStore
from engine.catalogue import Catalogue
from engine.errors import JobError
from finetuneflow.cli.exits import JOB_FAILED, UNREACHABLE, USAGE, exit_code
from finetuneflow.errors import (
    ApiError,
    InvalidArgument,
    ResourceExhausted,
    ServerError,
    Unavailable,
    Unimplemented,
    from_rpc_error,
    from_status,
)
from finetuneflow.v1 import dataset_service_pb2 as api
from finetuneflow.v1 import probe_service_pb2
from finetuneflow.v1.dataset_pb2 import Dataset
from finetuneflow.v1.dataset_service_pb2_grpc import DatasetServiceStub, add_DatasetServiceServicer_to_server
from finetuneflow.v1.fine_tuning_job_spec_pb2 import DataSource, FineTuningJobSpec
from finetuneflow.v1.probe_service_pb2 import PreflightFineTuningJobRequest
from gateway.uploads import check_header
from services.probe.datasets import DatasetsServicer
from services.probe.queries.query_runner import ServedQueries
from services.probe.settings import ProbeSettings
from standalone.local_probe import ChildProbe
from tests.gateway.serving import serving
from tests.tiny_models import make_tiny_model

ROWS = b'{"question": "Why?", "answer": "So."}\n'
ENDLESS = """{% set n = namespace(a=[1], b=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}
{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}"""
"""A template with one comparison that takes longer than any limit, and that only the end of the process stops."""
SHORT_LIMITS = "from engine.data import template_limits as t; t.MAX_SECONDS = t.GRACE_SECONDS = 0.1"
DEFECT = "import engine.data.preview as p; p.preview = lambda *_: 1 / 0"


class QueryErrors:
    """Sends the same request to a served probe and to one without a server."""

    def __init__(
        self, stub: DatasetServiceStub, address: str, settings: ProbeSettings, queries: ServedQueries, folder: Path
    ) -> None:
        self._stub, self._address = stub, address
        self._store = ArtifactStore(settings.artifacts)
        self._queries = queries
        self._folder = folder

    async def of(self, name: str, rows: bytes, base_model: str = "tiny", **source: Any) -> tuple[ApiError, ApiError]:
        """Returns the error with a server and the error without one."""
        file = self._folder / name
        file.write_bytes(rows)
        self._store.put_file(file, f"t/{name}")
        request = api.PreviewDatasetRequest(source={"dataset": "ds_1", **source}, base_model=base_model, tenant="t")
        with pytest.raises(ApiError) as local:
            ChildProbe().preview(request, {"ds_1": file})
        dataset = Dataset(id="ds_1", filename=name, path=name, sha256=hashlib.sha256(rows).hexdigest())
        request.dataset.CopyFrom(dataset)
        with pytest.raises(grpc.aio.AioRpcError) as served:
            await self._stub.PreviewDataset(request)
        return from_rpc_error(served.value, self._address), local.value

    async def of_preflight(self, **spec: Any) -> tuple[ApiError, ApiError]:
        """As `of`, for a preflight with these fields of the spec."""
        request = probe_service_pb2.PreflightFineTuningJobRequest(
            spec={"base_model": "tiny", "training_data": [{"dataset": "ds_1"}], **spec}, tenant="t"
        )
        with pytest.raises(ApiError) as local:
            ChildProbe().preflight(request, {})
        response = probe_service_pb2.PreflightFineTuningJobResponse()
        with pytest.raises(ServiceError) as served:
            await self._queries.run("PreflightFineTuningJob", request, "t", {}, response)
        return from_status(served.value.status()), local.value


@pytest.fixture
async def query_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[QueryErrors]:
    model = make_tiny_model(tmp_path / "tiny")
    monkeypatch.setenv("FTF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FTF_MODELS", json.dumps({"tiny": str(model)}))
    monkeypatch.setenv("FTF_WARM_SPARE", "false")
    monkeypatch.setenv("FTF_MAX_TEMPLATE_SECONDS", "1")
    settings = ProbeSettings()
    queries = ServedQueries(settings, Catalogue(settings.home, settings.models))
    add = add_DatasetServiceServicer_to_server
    async with (
        serving(api, "DatasetService", add, DatasetsServicer(queries)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield QueryErrors(DatasetServiceStub(channel), address, settings, queries, tmp_path)
    await queries.close()


def run_in_children(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `code` first in every Python process that starts from here on."""
    (folder / "sitecustomize.py").write_text(code + "\n")
    monkeypatch.setenv("PYTHONPATH", ":".join([str(folder), *sys.path]))
    # A child reads the folders of this process's path.
    monkeypatch.syspath_prepend(str(folder))


def assert_same(served: ApiError, local: ApiError) -> None:
    assert type(served) is type(local)
    assert (served.code, served.reason, served.message) == (local.code, local.reason, local.message)
    assert served.violations == local.violations
    assert exit_code(served) == exit_code(local)


async def test_unreachable_hub_is_not_a_user_error(query_errors: QueryErrors, monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that retries on exit code 3 must do so with and without a server."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    served, local = await query_errors.of("rows.jsonl", ROWS, base_model="org/tiny")
    assert_same(served, local)
    assert (type(local), local.reason, exit_code(local)) == (Unavailable, "HUB_UNREACHABLE", UNREACHABLE)


async def test_an_unknown_model_is_wrong_input(query_errors: QueryErrors) -> None:
    served, local = await query_errors.of("rows.jsonl", ROWS, base_model="tinny")
    assert_same(served, local)
    assert (type(local), local.reason, exit_code(local)) == (InvalidArgument, "MODEL_NOT_FOUND", USAGE)
    assert local.violations


async def test_a_field_that_is_not_available_yet_is_unimplemented(query_errors: QueryErrors) -> None:
    """The status is the one with which a gateway refuses such a job."""
    served, local = await query_errors.of_preflight(evaluation_data=[{"dataset": "ds_2", "weight": 2}])
    assert_same(served, local)
    assert (type(local), local.reason, exit_code(local)) == (Unimplemented, "NOT_IMPLEMENTED", USAGE)
    assert [violation.field for violation in local.violations] == ["spec.evaluation_data[0].weight"]


async def test_a_broken_file_is_wrong_input(query_errors: QueryErrors) -> None:
    served, local = await query_errors.of("rows.parquet", b"PAR1 and nothing else")
    assert_same(served, local)
    assert (type(local), exit_code(local)) == (InvalidArgument, USAGE)
    assert local.reason


@pytest.mark.parametrize(
    ("name", "rows", "reason"), [("a.xlsx", ROWS, "UNSUPPORTED_FILE"), ("a.csv", b"", "EMPTY_FILE")]
)
def test_local_refusal_of_file_equals_refusal_of_upload(tmp_path: Path, name: str, rows: bytes, reason: str) -> None:
    """With a server the upload is refused; two texts for one fault would read as two faults."""
    file = tmp_path / name
    file.write_bytes(rows)
    with pytest.raises(JobError) as upload:
        check_header(api.UploadDatasetHeader(filename=name, size_bytes=len(rows)), 1 << 20)
    spec = FineTuningJobSpec(base_model="tiny", training_data=[DataSource(dataset=name)])
    source = DataSource(dataset=name)
    probe = ChildProbe()
    for ask in (
        lambda: probe.preflight(PreflightFineTuningJobRequest(spec=spec), {name: file}),
        lambda: probe.validate(api.ValidateDatasetRequest(source=source, base_model="tiny"), {name: file}),
        lambda: probe.preview(api.PreviewDatasetRequest(source=source, base_model="tiny"), {name: file}),
    ):
        with pytest.raises(InvalidArgument) as local:
            ask()
        assert (local.value.reason, local.value.message) == (reason, from_caller_fault(upload.value).message)
        assert [violation.field for violation in local.value.violations] == [name]
        assert local.value.unsaid == (), "the field adds nothing to the message"


async def test_template_that_exceeds_its_limits_is_wrong_input(
    query_errors: QueryErrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller can correct the template; "the server failed" would be misleading."""
    run_in_children(SHORT_LIMITS, tmp_path, monkeypatch)
    served, local = await query_errors.of("rows.jsonl", ROWS, template=ENDLESS)
    assert_same(served, local)
    assert (type(local), local.reason, exit_code(local)) == (InvalidArgument, "TEMPLATE_EXCEEDED", USAGE)


async def test_slow_templates_together_exceed_a_limit_of_the_installation(
    query_errors: QueryErrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two previews with a template just below the limit of a row would otherwise hold both slots of a probe."""
    template = "{% for i in range(40000) %}{% set x = i %}{% endfor %}"
    served, local = await query_errors.of("rows.jsonl", ROWS * 500, template=template)
    # Which row it was depends on the speed of the moment.
    for error in (served, local):
        assert (type(error), error.reason) == (ResourceExhausted, "TEMPLATE_TOO_SLOW")
        assert "FTF_PROBE_MAX_TEMPLATE_SECONDS" in error.message


@pytest.mark.long
async def test_a_tokenizer_that_does_not_end_is_named(
    query_errors: QueryErrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is wrong; "the server failed" would be misleading, and the query would run for hours."""
    run_in_children("from engine.data import tokenizer_limit as t; t.BASE_SECONDS = 0.5", tmp_path, monkeypatch)
    tokenizer = tmp_path / "tiny" / "tokenizer.json"
    described = json.loads(tokenizer.read_text())
    split = {"type": "Split", "pattern": {"Regex": "(a+)+b"}, "behavior": "Isolated", "invert": False}
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, described["pre_tokenizer"]]}
    tokenizer.write_text(json.dumps(described))
    row = {"question": "Why?", "answer": ("a" * 19 + " ") * 20_000}
    served, local = await query_errors.of("rows.jsonl", json.dumps(row).encode())
    assert_same(served, local)
    assert (type(local), local.reason, exit_code(local)) == (InvalidArgument, "BAD_TOKENIZER", USAGE)


async def test_crash_error_contains_end_of_the_log(
    query_errors: QueryErrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is enough to report the defect."""
    run_in_children(DEFECT, tmp_path, monkeypatch)
    served, local = await query_errors.of("rows.jsonl", ROWS)
    assert_same(served, local)
    assert (type(local), local.reason, exit_code(local)) == (ServerError, "QUERY_CRASHED", JOB_FAILED)
    assert "ZeroDivisionError" in local.message
