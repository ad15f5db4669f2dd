"""EvaluationService: what stage 3 of jobs found."""

from typing import Any

import grpc
from sqlmodel import col, select

from chassis.errors import NotFound
from finetuneflow.v1 import evaluation_service_pb2 as api
from finetuneflow.v1.evaluation_pb2 import Evaluation
from finetuneflow.v1.evaluation_service_pb2_grpc import EvaluationServiceServicer
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from gateway import views
from gateway.paging import page_of
from gateway.sql.database import Database
from gateway.sql.tables import JobEvaluation
from gateway.tenancy import tenant_of

Context = grpc.aio.ServicerContext[Any, Any]


class Evaluations(EvaluationServiceServicer):
    """Served by the gateway. CreateEvaluation answers UNIMPLEMENTED through the generated base."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def GetEvaluation(self, request: api.GetEvaluationRequest, context: Context) -> api.GetEvaluationResponse:
        query = select(JobEvaluation).where(
            JobEvaluation.id == request.evaluation_id, JobEvaluation.tenant == tenant_of(context)
        )
        async with self._database.read() as session:
            row = (await session.exec(query)).one_or_none()
        if row is None:
            raise NotFound("EVALUATION_NOT_FOUND", f"there is no evaluation {request.evaluation_id!r}")
        return api.GetEvaluationResponse(evaluation=_evaluation(row))

    async def ListEvaluations(
        self, request: api.ListEvaluationsRequest, context: Context
    ) -> api.ListEvaluationsResponse:
        page = page_of(request, "evaluations", request.job_id)
        query = select(JobEvaluation).where(JobEvaluation.tenant == tenant_of(context))
        if request.job_id:
            query = query.where(JobEvaluation.job_id == request.job_id)
        if page.after:
            query = query.where(col(JobEvaluation.id) < page.after)
        async with self._database.read() as session:
            rows = (await session.exec(query.order_by(col(JobEvaluation.id).desc()).limit(page.limit))).all()
        kept, token = page.cut(rows, lambda row: row.id)
        return api.ListEvaluationsResponse(evaluations=[_evaluation(row) for row in kept], next_page_token=token)


def _evaluation(row: JobEvaluation) -> Evaluation:
    return Evaluation(
        id=row.id,
        job_id=row.job_id,
        result=EvaluationResult.FromString(row.result),
        create_time=views.timestamp(row.create_time),
    )
