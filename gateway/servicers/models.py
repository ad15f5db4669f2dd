"""ModelService: the catalogue's base models and the tuned models of finished jobs, as one noun."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from sqlalchemy import func
from sqlmodel import col, select

from chassis.errors import InvalidArgument, NotFound, Violation
from engine.catalogue import Catalogue, CatalogueEntry
from engine.errors import JobError
from finetuneflow.v1 import model_service_pb2 as api
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.model_pb2 import Model, ModelKind
from finetuneflow.v1.model_service_pb2_grpc import ModelServiceServicer
from finetuneflow.v1.stage_result_pb2 import PreflightResult, TrainingResult
from gateway import views
from gateway.access.callers import tenant_of
from gateway.paging import page_of
from gateway.sql.database import Database
from gateway.sql.tables import SavedResult, Work
from gateway.tuned_models import TUNED
from gateway.work.kinds import EVALUATION, EXPORT

Context = grpc.aio.ServicerContext[Any, Any]

# Cursors: base models are listed first, by id; tuned ones follow, newest first.
_BASE_CURSOR = "base:"
_TUNED_CURSOR = "tuned:"


class Models(ModelServiceServicer):
    """Served by the gateway."""

    def __init__(self, database: Database, catalogue: Catalogue) -> None:
        self._database = database
        self._catalogue = catalogue

    async def GetModel(self, request: api.GetModelRequest, context: Context) -> api.GetModelResponse:
        bases = await self._bases()
        if request.model_id in bases:
            return api.GetModelResponse(model=_base(bases[request.model_id]))
        if request.model_id.startswith(TUNED):
            job_id = request.model_id.removeprefix(TUNED)
            tuned = await self._tuned(tenant_of(context), limit=1, job_id=job_id)
            if tuned:
                verdicts = await self._verdicts(tuned)
                return api.GetModelResponse(model=_tuned(*tuned[0], bases, verdicts))
        raise NotFound("MODEL_NOT_FOUND", self._missing(request.model_id))

    async def ListModels(self, request: api.ListModelsRequest, context: Context) -> api.ListModelsResponse:
        if request.kind not in ModelKind.values():
            problem = f"kind is {request.kind}; it must be BASE or TUNED."
            raise InvalidArgument("INVALID_KIND", problem, [Violation("kind", problem)])
        page = page_of(request, "models", str(request.kind))
        bases = await self._bases()
        listed: list[tuple[str, Model]] = []
        if request.kind != ModelKind.MODEL_KIND_TUNED and not page.after.startswith(_TUNED_CURSOR):
            after = page.after.removeprefix(_BASE_CURSOR)
            listed = [(f"{_BASE_CURSOR}{id}", _base(entry)) for id, entry in bases.items() if id > after]
        if request.kind != ModelKind.MODEL_KIND_BASE and len(listed) < page.limit:
            before = page.after.removeprefix(_TUNED_CURSOR) if page.after.startswith(_TUNED_CURSOR) else ""
            rows = await self._tuned(tenant_of(context), limit=page.limit - len(listed), before=before)
            verdicts = await self._verdicts(rows)
            listed += [(f"{_TUNED_CURSOR}{export.id}", _tuned(export, job, bases, verdicts)) for export, job in rows]
        kept, token = page.cut(listed, lambda item: item[0])
        return api.ListModelsResponse(models=[model for _, model in kept], next_page_token=token)

    async def _bases(self) -> dict[str, CatalogueEntry]:
        entries = await asyncio.to_thread(self._catalogue.list)
        return {entry.id: entry for entry in sorted(entries, key=lambda entry: entry.id)}

    async def _tuned(
        self, tenant: str, *, limit: int, before: str = "", job_id: str = ""
    ) -> list[tuple[SavedResult, Work]]:
        """Returns jobs with their first export, newest first."""
        firsts = select(func.min(SavedResult.id)).where(
            SavedResult.tenant == tenant, SavedResult.kind == EXPORT.name, col(SavedResult.result).is_not(None)
        )
        query = select(SavedResult, Work).join(Work, col(Work.id) == col(SavedResult.job_id))
        query = query.where(col(SavedResult.id).in_(firsts.group_by(col(SavedResult.job_id))))
        if before:
            query = query.where(SavedResult.id < before)
        if job_id:
            query = query.where(SavedResult.job_id == job_id)
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(col(SavedResult.id).desc()).limit(limit))).all()
        return [(export, job) for export, job in rows]

    async def _verdicts(self, rows: Sequence[tuple[SavedResult, Work]]) -> dict[str, tuple[str, str]]:
        """Returns the decision of the gate of each job's own evaluation, and the regression that it shows, by the job's
        id."""
        query = select(SavedResult.work_id, SavedResult.decision, SavedResult.shown_regression).where(
            SavedResult.kind == EVALUATION.name, col(SavedResult.work_id).in_([job.id for _, job in rows])
        )
        async with self._database.read() as session:
            return {job_id: (decision, shown) for job_id, decision, shown in (await session.exec(query)).all()}

    def _missing(self, model_id: str) -> str:
        message = f"There is no model {model_id!r}"
        if model_id.startswith(TUNED):
            return f"{message}: no job has this id, or its export has not finished."
        try:
            self._catalogue.check(model_id)
        except JobError as error:
            return f"{message}: {error.message}"
        return f"{message} in the catalogue. A job can also name a Hugging Face id (org/name)."


def _base(entry: CatalogueEntry) -> Model:
    return Model(
        id=entry.id,
        kind=ModelKind.MODEL_KIND_BASE,
        description=entry.description,
        revision=entry.revision,
        num_parameters=entry.num_parameters,
        context_length=entry.context_length,
        license=entry.license,
    )


def _tuned(
    export: SavedResult, job: Work, bases: dict[str, CatalogueEntry], verdicts: Mapping[str, tuple[str, str]]
) -> Model:
    decision, shown_regression = verdicts.get(job.id, ("", ""))
    spec = FineTuningJobSpec.FromString(job.spec)
    identity = PreflightResult.FromString(job.preflight or b"").base_model
    training = TrainingResult.FromString(job.training or b"")
    base = identity.id or spec.base_model
    name = f"{spec.display_name}: " if spec.display_name else ""
    return Model(
        id=f"{TUNED}{job.id}",
        kind=ModelKind.MODEL_KIND_TUNED,
        description=f"{name}{base}, tuned by job {job.id}",
        revision=str(training.best_step),
        base_model=base,
        num_parameters=identity.num_parameters,
        context_length=identity.context_length,
        license=bases[base].license if base in bases else "",
        create_time=views.timestamp(export.create_time),
        gate_decision=decision or None,
        shown_regression=shown_regression,
    )
