"""Comparisons of tuned models with their bases."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, ClassVar

from finetuneflow.blocking import blocking
from finetuneflow.fields import check_list, fill
from finetuneflow.model_work import AsyncModelWork, BlockingModelWork, model_name
from finetuneflow.resources.evaluation import Evaluation
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import evaluation_service_pb2 as pb
from finetuneflow.v1 import evaluation_service_pb2_grpc as pb_grpc
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EvaluationSpec


class AsyncEvaluations(AsyncModelWork[Evaluation]):
    """`client.evaluations` of an AsyncClient."""

    _noun: ClassVar[str] = "Evaluation"
    _api: ClassVar[Any] = pb
    _resource: ClassVar[type[Evaluation]] = Evaluation

    def __init__(self, transport: CallPolicy) -> None:
        super().__init__(transport, pb_grpc.EvaluationServiceStub(transport.channel))

    async def create(
        self,
        model: str,
        *,
        num_samples: int | None = None,
        prompts: Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        request_id: str = "",
    ) -> Evaluation:
        """Evaluates the model of a job whose training has finished, and compares it with its base.

        Args:
            model: The tuned model, `ft:<job_id>` (`job.tuned_model`), or the id of its job.
            num_samples: Held-out rows that both models answer. Range [0, 100]; default: the job's own value.
            prompts: Prompts that both models answer; at most 100, each at most 16 KiB. Default: the job's own.
            max_new_tokens: Maximum length of an answer in tokens. Range [1, 4096]; default: the job's own value.
            request_id: Makes the call idempotent: a repeated call with the same request_id and arguments returns the
                same evaluation. At most 128 characters. Default: a new one, so retries of this call are safe.

        Returns:
            The evaluation, in state QUEUED.

        Raises:
            NotFound: There is no such model.
            FailedPrecondition: The job has not finished its training, or another version resolved its settings.
            InvalidArgument: A value is out of range.
            Unimplemented: A base model or a checkpoint.
            AlreadyExists: The request_id was used with other arguments.
        """
        check_list("prompts", prompts)
        spec = fill(EvaluationSpec(), num_samples=num_samples, prompts=prompts, max_new_tokens=max_new_tokens)
        request = pb.CreateEvaluationRequest(
            model=model_name(model), spec=spec, request_id=request_id or uuid.uuid4().hex
        )
        return self._read(await self._transport.call(self._stub.CreateEvaluation, request))


class Evaluations(BlockingModelWork):
    """`client.evaluations`."""

    create = blocking(AsyncEvaluations.create)
