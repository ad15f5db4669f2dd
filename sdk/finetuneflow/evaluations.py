"""Comparisons of tuned models with their bases."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from os import PathLike
from typing import Any, ClassVar

from finetuneflow.blocking import blocking, iterating
from finetuneflow.datasets import AsyncDatasets
from finetuneflow.enums import enum_number
from finetuneflow.fields import check_list
from finetuneflow.model_work import AsyncModelWork, BlockingModelWork, model_name
from finetuneflow.paging import paged
from finetuneflow.resources.evaluation import Evaluation, EvaluationRow, RowChange
from finetuneflow.spec import draft_evaluation, draft_sources
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import evaluation_pb2
from finetuneflow.v1 import evaluation_service_pb2 as pb
from finetuneflow.v1 import evaluation_service_pb2_grpc as pb_grpc


class AsyncEvaluations(AsyncModelWork[Evaluation]):
    """`client.evaluations` of an AsyncClient."""

    _noun: ClassVar[str] = "Evaluation"
    _api: ClassVar[Any] = pb
    _resource: ClassVar[type[Evaluation]] = Evaluation

    def __init__(self, transport: CallPolicy, datasets: AsyncDatasets) -> None:
        super().__init__(transport, pb_grpc.EvaluationServiceStub(transport.channel))
        self._datasets = datasets

    async def create(
        self,
        model: str,
        *,
        against: str = "",
        data: str | PathLike[str] | Mapping[str, Any] | Sequence[Any] = (),
        num_samples: int | None = None,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        max_rows: int | None = None,
        metrics: Sequence[str] | None = None,
        graders: Sequence[Mapping[str, Any]] | None = None,
        gate: Sequence[Mapping[str, Any]] | None = None,
        json_schema: Mapping[str, Any] | None = None,
        questions: str | PathLike[str] | None = None,
        regression: str | PathLike[str] | None = None,
        harness_tasks: Sequence[str] | None = None,
        harness_limit: int | None = None,
        request_id: str = "",
    ) -> Evaluation:
        """Evaluates a model, and compares it with its base or another model, unless it is a base model alone.

        A value that is empty (`graders=[]`, `questions=""`) removes the job's own one; None keeps it.

        Args:
            model: The tuned model, `ft:<job_id>` (`job.tuned_model`), or the id of its job; `ft:<job_id>@<step>` for
                one of its checkpoints; or a base model. A base model without `against` is measured alone, without
                gains; it needs `data`, `questions` or `prompts`.
            against: The model to compare it with, named in the same way; one of the two must be tuned. Default: the
                base model of `model`; none for a base model.
            data: Rows to measure on: a path (uploaded), a dataset id, `hf://owner/name`, a table with `dataset`, or a
                list of these. Default: the held-out rows of the job; none for a base model alone.
            num_samples: Held-out rows that both models answer. Range [0, 100]; default: the job's own value.
            prompts: Prompts that both models answer; at most 100, each at most 16 KiB. Default: the job's own.
            max_new_tokens: Maximum length of an answer in tokens. Range [1, 4096]; default: the job's own value.
            max_rows: Maximum number of held-out rows that both models answer. Range [0, 10,000]; default: the job's.
            metrics: Metrics of the answers, such as `exact_match`; see docs/evaluation.md. Default: the job's own.
            graders: Grader objects as OpenAI's API takes them. Default: the job's own.
            gate: Conditions, such as `{"metric": "exact_match", "min_value": 0.8}`. Default: the job's own.
            json_schema: JSON Schema for the metric json_schema. Default: the job's own.
            questions: Critical questions: a path (uploaded) or a dataset id. Default: the job's own.
            regression: Rows that show what was lost: `general`, `none`, a path (uploaded) or a dataset id. Default: the
                job's own.
            harness_tasks: Tasks of lm-evaluation-harness that both models are measured on, of those that
                `client.probe.hardware()` lists; at most 16. Default: none, whatever the job's own evaluation has run.
            harness_limit: Maximum number of rows of each of these tasks. Range [1, 1,000,000]. Default: all rows.
            request_id: Makes the call idempotent: a repeated call with the same request_id and arguments returns the
                same evaluation. At most 128 characters. Default: a new one, so retries of this call are safe.

        Returns:
            The evaluation, in state QUEUED.

        Raises:
            NotFound: There is no such model or dataset.
            OSError: A file cannot be read.
            FailedPrecondition: The job has not finished its training, or another version resolved its settings.
            InvalidArgument: A value is out of range, or no running evaluator has a task of `harness_tasks`.
            AlreadyExists: The request_id was used with other arguments.
        """
        check_list("prompts", prompts)
        check_list("metrics", metrics)
        check_list("harness_tasks", harness_tasks)
        removable = {
            "prompts": prompts,
            "metrics": metrics,
            "graders": graders,
            "gate": gate,
            "json_schema": json_schema,
            "questions": questions,
        }
        # An empty list cannot be told from an unset one in the message.
        cleared = [name for name, value in removable.items() if value is not None and not value]
        spec, files = draft_evaluation(
            {
                "num_samples": num_samples,
                "max_new_tokens": max_new_tokens,
                "max_rows": max_rows,
                "regression": regression,
                **{name: value for name, value in removable.items() if name not in cleared},
                "harness_tasks": harness_tasks,
                "harness_limit": harness_limit,
            }
        )
        sources, rows = draft_sources(data, "data") if data else ([], [])
        for file in (*files, *rows):
            file.name((await self._datasets.upload(file.path)).id)
        request = pb.CreateEvaluationRequest(
            model=model_name(model),
            against=model_name(against),
            data=sources,
            spec=spec,
            clear_fields=cleared,
            request_id=request_id or uuid.uuid4().hex,
        )
        return self._read(await self._transport.call(self._stub.CreateEvaluation, request))

    def rows(
        self,
        evaluation_id: str,
        /,
        *,
        metric: str = "",
        change: RowChange | str | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[EvaluationRow, None]:
        """Lists the held-out rows with what both models made of them, in order. Pages are fetched as needed.

        Args:
            evaluation_id: Id of an evaluation that has SUCCEEDED, a job's own one included.
            metric: Lists only rows with a value of this metric. Default: all rows.
            change: Lists only rows on which the tuned model is `improved`, `worsened` or `equal` by `metric`, or by the
                loss if no metric is named. Default: all.
            limit: Maximum number of rows. Default: no limit.

        Yields:
            The rows.

        Raises:
            NotFound: There is no such evaluation.
            FailedPrecondition: It has no rows, or has not SUCCEEDED.
            InvalidArgument: It has no such metric, or there is no such change.
        """
        request = pb.ListEvaluationRowsRequest(evaluation_id=evaluation_id, metric=metric)
        if change:
            request.change = enum_number(evaluation_pb2.RowChange.DESCRIPTOR, change, "change")
        return paged(self._transport, self._stub.ListEvaluationRows, request, "rows", limit, EvaluationRow.from_proto)


class Evaluations(BlockingModelWork):
    """`client.evaluations`."""

    create = blocking(AsyncEvaluations.create)
    rows = iterating(AsyncEvaluations.rows)
