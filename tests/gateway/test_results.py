"""Reading recipes, evaluations and exports."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from finetuneflow.v1 import evaluation_service_pb2, export_service_pb2, recipe_service_pb2
from finetuneflow.v1.evaluation_service_pb2_grpc import (
    EvaluationServiceStub,
    add_EvaluationServiceServicer_to_server,
)
from finetuneflow.v1.export_service_pb2_grpc import ExportServiceStub, add_ExportServiceServicer_to_server
from finetuneflow.v1.fine_tuning_job_spec_pb2 import ExportFormat, ExportSpec, FineTuningJobSpec
from finetuneflow.v1.recipe_service_pb2_grpc import RecipeServiceStub, add_RecipeServiceServicer_to_server
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, ExportResult
from gateway.identifiers import new_id
from gateway.servicers.evaluations import Evaluations
from gateway.servicers.exports import Exports
from gateway.servicers.recipes import Recipes
from gateway.sql.database import Database
from gateway.sql.tables import JobEvaluation, JobExport, now
from tests.gateway.serving import add_job, refusal, serving


@pytest.fixture
async def recipes() -> AsyncIterator[RecipeServiceStub]:
    add = add_RecipeServiceServicer_to_server
    async with (
        serving(recipe_service_pb2, "RecipeService", add, Recipes()) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield RecipeServiceStub(channel)


@pytest.fixture
async def evaluations(database: Database) -> AsyncIterator[EvaluationServiceStub]:
    add = add_EvaluationServiceServicer_to_server
    async with (
        serving(evaluation_service_pb2, "EvaluationService", add, Evaluations(database)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield EvaluationServiceStub(channel)


@pytest.fixture
async def exports(database: Database) -> AsyncIterator[ExportServiceStub]:
    add = add_ExportServiceServicer_to_server
    async with (
        serving(export_service_pb2, "ExportService", add, Exports(database)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield ExportServiceStub(channel)


async def add_evaluation(database: Database, job_id: str, tuned_loss: float, tenant: str = "default") -> str:
    result = EvaluationResult(base_loss=4.0, tuned_loss=tuned_loss).SerializeToString()
    row = JobEvaluation(id=new_id("ev"), tenant=tenant, job_id=job_id, result=result, create_time=now())
    async with database.write() as session:
        session.add(row)
    return row.id


async def add_export(database: Database, job_id: str, tenant: str = "default") -> str:
    result = ExportResult(package_path=f"jobs/{job_id}/export/1/finetuneflow_export.zip").SerializeToString()
    row = JobExport(id=new_id("ex"), tenant=tenant, job_id=job_id, result=result, create_time=now())
    async with database.write() as session:
        session.add(row)
    return row.id


async def test_every_recipe_is_listed_with_what_it_decides(recipes: RecipeServiceStub) -> None:
    """A recipe whose values can't be read is a black box."""
    Request = recipe_service_pb2.ListRecipesRequest
    first = await recipes.ListRecipes(Request(page_size=1))
    rest = await recipes.ListRecipes(Request(page_token=first.next_page_token))
    listed = [*first.recipes, *rest.recipes]
    names = [recipe.name for recipe in listed]
    assert names == sorted(set(names))
    assert {"default", "cpu-demo"} <= set(names)
    assert all(recipe.description for recipe in listed)
    default = (await recipes.GetRecipe(recipe_service_pb2.GetRecipeRequest(name="default"))).recipe
    assert default.spec.hyperparameters.learning_rate == 2e-4
    assert default.spec.lora.r == 16
    assert default == next(recipe for recipe in listed if recipe.name == "default")


async def test_a_mistyped_recipe_is_told_the_nearest_one(recipes: RecipeServiceStub) -> None:
    found = await refusal(recipes.GetRecipe(recipe_service_pb2.GetRecipeRequest(name="cpu-dmo")))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "RECIPE_NOT_FOUND")
    assert "cpu-dmo" in found.message
    assert "cpu-demo" in found.message


async def test_evaluations_are_found_by_id_job_and_page(evaluations: EvaluationServiceStub, database: Database) -> None:
    """Newest first, one job's or all, and never another tenant's."""
    api = evaluation_service_pb2
    jobs = [await add_job(database) for _ in range(2)]
    ids = [await add_evaluation(database, jobs[index % 2], index) for index in range(5)]
    foreign = await add_evaluation(database, await add_job(database, tenant="another"), 9, tenant="another")
    assert await pages(evaluations.ListEvaluations, api.ListEvaluationsRequest, "evaluations") == sorted(ids)[::-1]
    of_one = await pages(evaluations.ListEvaluations, api.ListEvaluationsRequest, "evaluations", job_id=jobs[1])
    assert of_one == sorted([ids[1], ids[3]])[::-1]
    got = (await evaluations.GetEvaluation(api.GetEvaluationRequest(evaluation_id=ids[3]))).evaluation
    assert (got.job_id, got.result.base_loss, got.result.tuned_loss) == (jobs[1], 4.0, 3.0)
    for unknown in ("ev_nope", foreign):
        found = await refusal(evaluations.GetEvaluation(api.GetEvaluationRequest(evaluation_id=unknown)))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "EVALUATION_NOT_FOUND")
        assert unknown in found.message


async def test_exports_are_found_by_id_job_and_page(exports: ExportServiceStub, database: Database) -> None:
    """Newest first, one job's or all, and never another tenant's."""
    api = export_service_pb2
    unset = await add_job(database)
    merged = await add_job(database, FineTuningJobSpec(export=ExportSpec(formats=[ExportFormat.EXPORT_FORMAT_MERGED])))
    ids = [await add_export(database, (unset, merged)[index % 2]) for index in range(5)]
    foreign = await add_export(database, await add_job(database, tenant="another"), tenant="another")
    assert await pages(exports.ListExports, api.ListExportsRequest, "exports") == sorted(ids)[::-1]
    of_one = await pages(exports.ListExports, api.ListExportsRequest, "exports", job_id=merged)
    assert of_one == sorted([ids[1], ids[3]])[::-1]
    got = [(await exports.GetExport(api.GetExportRequest(export_id=id))).export for id in ids[:2]]
    assert [list(export.formats) for export in got] == [
        [ExportFormat.EXPORT_FORMAT_ADAPTER],
        [ExportFormat.EXPORT_FORMAT_MERGED],
    ]
    assert unset in got[0].result.package_path
    for unknown in ("ex_nope", foreign):
        found = await refusal(exports.GetExport(api.GetExportRequest(export_id=unknown)))
        assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "EXPORT_NOT_FOUND")
        assert unknown in found.message


async def test_creating_them_is_not_built_and_says_so(
    evaluations: EvaluationServiceStub, exports: ExportServiceStub
) -> None:
    """A hollow success would have callers wait for ever."""
    for call in (
        evaluations.CreateEvaluation(evaluation_service_pb2.CreateEvaluationRequest()),
        exports.CreateExport(export_service_pb2.CreateExportRequest()),
    ):
        found = await refusal(call)
        assert (found.code, found.reason) == (grpc.StatusCode.UNIMPLEMENTED, "METHOD_NOT_IMPLEMENTED")


async def pages(method: Any, request: Any, field: str, **filters: str) -> list[str]:
    """The ids of a whole list, two to a page."""
    listed: list[str] = []
    token = ""
    while True:
        answer = await method(request(page_size=2, page_token=token, **filters))
        listed += [item.id for item in getattr(answer, field)]
        token = answer.next_page_token
        if not token:
            return listed
