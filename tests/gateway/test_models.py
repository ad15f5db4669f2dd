from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest

from engine.catalogue import Catalogue
from engine.inl_sizes import SIZES
from engine.model_names import BUILT_IN
from finetuneflow.v1 import model_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.model_pb2 import ModelKind
from finetuneflow.v1.model_service_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from finetuneflow.v1.stage_result_pb2 import (
    BaseModelIdentity,
    ExportResult,
    GateDecision,
    PreflightResult,
    TrainingResult,
)
from gateway.identifiers import new_id
from gateway.servicers.models import Models
from gateway.sql.database import Database
from gateway.sql.tables import SavedResult, now
from tests.gateway.serving import add_job, refusal, serving

Tune = Callable[..., Awaitable[str]]


@pytest.fixture
async def stub(tmp_path: Path, database: Database) -> AsyncIterator[ModelServiceStub]:
    catalogue = Catalogue(tmp_path, {"alpha": tmp_path, "zeta": tmp_path})
    async with (
        serving(api, "ModelService", add_ModelServiceServicer_to_server, Models(database, catalogue)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield ModelServiceStub(channel)


@pytest.fixture
def tune(database: Database) -> Tune:
    async def tune(exports: int = 1, tenant: str = "default") -> str:
        """A finished job with its packages; returns the tuned model's id."""
        identity = BaseModelIdentity(id=BUILT_IN, revision="1", num_parameters=7, context_length=8)
        job_id = await add_job(
            database,
            FineTuningJobSpec(display_name="Sums", base_model=BUILT_IN),
            tenant=tenant,
            preflight=PreflightResult(base_model=identity).SerializeToString(),
            training=TrainingResult(best_step=40).SerializeToString(),
        )
        async with database.write() as session:
            for _ in range(exports):
                result = ExportResult().SerializeToString()
                session.add(
                    SavedResult(
                        id=new_id("ex"),
                        tenant=tenant,
                        kind="export",
                        job_id=job_id,
                        work_id=job_id,
                        result=result,
                        create_time=now(),
                    )
                )
        return f"ft:{job_id}"

    return tune


async def test_what_a_promoted_model_has_lost_is_listed(stub: ModelServiceStub, tune: Tune, database: Database) -> None:
    """Whoever chooses a model from the list does not read its evaluation."""
    model = await tune()
    job_id = model.removeprefix("ft:")
    about = {"kind": "evaluation", "decision": "GATE_DECISION_PROMOTE", "shown_regression": "Its loss is 2."}
    async with database.write() as session:
        session.add(
            SavedResult(id=new_id("ev"), tenant="default", job_id=job_id, work_id=job_id, create_time=now(), **about)
        )
    (listed,) = (await stub.ListModels(api.ListModelsRequest(kind=ModelKind.MODEL_KIND_TUNED))).models
    assert (listed.gate_decision, listed.shown_regression) == (GateDecision.GATE_DECISION_PROMOTE, "Its loss is 2.")
    assert (await stub.GetModel(api.GetModelRequest(model_id=model))).model == listed


async def test_base_and_tuned_models_are_listed_together_over_pages(stub: ModelServiceStub, tune: Tune) -> None:
    """Paging must neither skip nor repeat models."""
    await tune(exports=0)
    await tune(tenant="another")
    tuned = [await tune(exports=1 + index % 2) for index in range(4)]
    bases = sorted(["alpha", BUILT_IN, f"random:{BUILT_IN}", "zeta", *SIZES])
    for size in range(1, 9):
        listed: list[str] = []
        token = ""
        while True:
            answer = await stub.ListModels(api.ListModelsRequest(page_size=size, page_token=token))
            assert len(answer.models) <= size
            listed += [model.id for model in answer.models]
            token = answer.next_page_token
            if not token:
                break
        assert listed[: len(bases)] == bases
        assert listed[len(bases) :] == sorted(tuned, reverse=True)


async def test_models_are_filtered_by_kind(stub: ModelServiceStub, tune: Tune) -> None:
    tuned = await tune()
    bases = await stub.ListModels(api.ListModelsRequest(kind=ModelKind.MODEL_KIND_BASE))
    assert [model.id for model in bases.models] == sorted(["alpha", BUILT_IN, f"random:{BUILT_IN}", "zeta", *SIZES])
    own = await stub.ListModels(api.ListModelsRequest(kind=ModelKind.MODEL_KIND_TUNED))
    assert [model.id for model in own.models] == [tuned]
    found = await refusal(stub.ListModels(api.ListModelsRequest(kind=9)))  # type: ignore[arg-type]
    assert (found.code, found.reason, found.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_KIND",
        ("kind",),
    )


async def test_tuned_model_has_base_step_and_license(stub: ModelServiceStub, tune: Tune) -> None:
    """Without the licence, nobody may serve it."""
    tuned = await tune()
    model = (await stub.GetModel(api.GetModelRequest(model_id=tuned))).model
    assert (model.id, model.kind, model.base_model) == (tuned, ModelKind.MODEL_KIND_TUNED, BUILT_IN)
    assert (model.revision, model.num_parameters, model.context_length) == ("40", 7, 8)
    assert model.license == "Apache-2.0"
    assert "Sums" in model.description
    assert model.create_time.seconds > 0


async def test_a_base_model_is_described(stub: ModelServiceStub) -> None:
    model = (await stub.GetModel(api.GetModelRequest(model_id=BUILT_IN))).model
    assert (model.kind, model.license) == (ModelKind.MODEL_KIND_BASE, "Apache-2.0")
    assert model.revision


@pytest.mark.parametrize(
    ("model_id", "hint"),
    [
        ("smollm2-135", BUILT_IN),
        ("org/name", "Hugging Face"),
        ("/etc/passwd", "Paths and URLs"),
        ("ft:ftjob_nope", "its export has not finished"),
        ("", "no model ''"),
    ],
)
async def test_refusal_of_unknown_model_contains_its_id_and_advice(
    stub: ModelServiceStub, model_id: str, hint: str
) -> None:
    found = await refusal(stub.GetModel(api.GetModelRequest(model_id=model_id)))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")
    assert model_id in found.message
    assert hint in found.message
