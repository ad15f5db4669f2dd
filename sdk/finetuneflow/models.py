"""Base models of the catalogue and tuned models."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.enums import enum_number
from finetuneflow.paging import paged
from finetuneflow.resources.model import Model, ModelKind
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import model_pb2, model_service_pb2_grpc
from finetuneflow.v1 import model_service_pb2 as pb


class AsyncModels:
    """`client.models` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = model_service_pb2_grpc.ModelServiceStub(transport.channel)

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


class Models(Blocking):
    """`client.models`. A job may also name Hugging Face ids outside the catalogue, which are not listed here."""

    get = blocking(AsyncModels.get)
    list = iterating(AsyncModels.list)
