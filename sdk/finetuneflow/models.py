"""Base models of the catalogue and tuned models, and the text that they generate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import grpc

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.errors import ServerUnreachable, Unavailable
from finetuneflow.fields import check_list, fill
from finetuneflow.paging import paged
from finetuneflow.resources.answer import AnswerPart
from finetuneflow.resources.model import Model, ModelKind
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import evaluator_service_pb2, evaluator_service_pb2_grpc, model_pb2, model_service_pb2_grpc
from finetuneflow.v1 import model_service_pb2 as pb

_SECONDS_FOR_A_PART = 3.0
"""Time in which an answer that has not begun is asked for again, while a part of the server is unavailable."""


class AsyncModels:
    """`client.models` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = model_service_pb2_grpc.ModelServiceStub(transport.channel)
        self._evaluator = evaluator_service_pb2_grpc.EvaluatorServiceStub(transport.channel)

    async def get(self, model_id: str) -> Model:
        """Returns one model.

        Args:
            model_id: Alias of the catalogue, or `ft:<job_id>`.

        Returns:
            The model.

        Raises:
            NotFound: The model is neither in the catalogue nor a tuned model.
        """
        response = await self._transport.call(self._stub.GetModel, pb.GetModelRequest(model_id=model_id))
        return Model.from_proto(response.model)

    def list(self, *, kind: ModelKind | str | None = None, limit: int | None = None) -> AsyncGenerator[Model, None]:
        """Lists base models first, then tuned models, newest first. Pages are fetched as needed.

        Args:
            kind: Lists only models of this kind: `base` or `tuned`. Default: both.
            limit: Maximum number of models. Default: no limit.

        Yields:
            The models.

        Raises:
            InvalidArgument: The kind is unknown.
        """
        request = pb.ListModelsRequest()
        if kind:
            request.kind = enum_number(model_pb2.ModelKind.DESCRIPTOR, kind, "kind")
        return paged(self._transport, self._stub.ListModels, request, "models", limit, Model.from_proto)

    def generate(
        self,
        model: str,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, str]] | None = None,
        system_prompt: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        logprobs: bool = False,
    ) -> AsyncGenerator[AnswerPart, None]:
        """Generates an answer, part by part. To stop it, leave the loop.

        The prompt is asked as the evaluation of the model's job asks: with its chat template and system prompt.

        Args:
            model: A base model of the catalogue, `ft:<job_id>`, `ft:<job_id>@<step>` for a checkpoint, or a job's id.
            prompt: The question. Either this or `messages`.
            messages: The conversation so far: `{"role": "system" | "user" | "assistant", "content": …}`, oldest first.
            system_prompt: System turn before the conversation. Default: that of the model's job.
            max_new_tokens: Maximum number of generated tokens. Range [1, 4096]; default 256.
            temperature: Sampling temperature. Range [0, 2]; default 0, greedy decoding.
            top_p: Samples from the most probable tokens that add up to this. Range (0, 1]; default 1.
            seed: Seed of the sampling, to repeat an answer. Default: a random one.
            stop: Texts at which the answer ends, at most 8.
            logprobs: Adds the probability of each token to the parts.

        Yields:
            The parts, each of which is its text. The first may only tell a phase, such as `loading_model`; the last
            has the usage.

        Raises:
            InvalidArgument: A value is out of range, or the prompt is too long for the model.
            NotFound: There is no such model.
            ResourceExhausted: Too many answers are being generated, or the memory does not suffice.
            Unavailable: No evaluator is reachable, or it was lost during the answer.
        """
        check_list("stop", stop)
        request = fill(
            evaluator_service_pb2.GenerateRequest(),
            model=f"ft:{model}" if model.startswith("ftjob_") else model,
            prompt=prompt,
            messages=messages,
            system_prompt=system_prompt,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            stop=stop,
            logprobs=logprobs,
        )
        return _parts(self._transport, self._evaluator.Generate, request)


async def _parts(
    transport: CallPolicy, method: Any, request: evaluator_service_pb2.GenerateRequest
) -> AsyncGenerator[AnswerPart, None]:
    gone, partly = transport.patience(), transport.patience(_SECONDS_FOR_A_PART)
    begun = finished = False
    while not finished:
        stream = transport.stream(method, request)
        try:
            async for response in stream:
                begun = True
                part = AnswerPart.from_proto(response)
                finished = bool(part.finish_reason)
                yield part
            if not finished:
                raise Unavailable("The server closed the stream before the answer was complete.")
        except grpc.RpcError as rpc_error:
            error = transport.error(rpc_error)
            patience = gone if isinstance(error, ServerUnreachable) else partly
            # After the first part a new answer might differ from what the caller has.
            delay = patience.next_delay() if isinstance(error, Unavailable) and not begun else None
            if delay is None:
                raise error from rpc_error
            await transport.sleep(delay)
        finally:
            stream.cancel()


class Models(Blocking):
    """`client.models`. A job may also name Hugging Face ids outside the catalogue, which are not listed here."""

    get = blocking(AsyncModels.get)
    list = iterating(AsyncModels.list)
    generate = iterating(AsyncModels.generate)
