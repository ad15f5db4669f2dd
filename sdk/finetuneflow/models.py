"""Base models of the catalogue and tuned models."""

from __future__ import annotations

from collections.abc import Iterator

from finetuneflow.enums import enum_number
from finetuneflow.paging import pages
from finetuneflow.resources.model import Model, ModelKind
from finetuneflow.transport import Transport
from finetuneflow.v1 import model_pb2, model_service_pb2_grpc
from finetuneflow.v1 import model_service_pb2 as pb


class Models:
    """`client.models`. Hugging Face ids outside the catalogue work in a job without being listed here."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = model_service_pb2_grpc.ModelServiceStub(transport.channel)

    def get(self, model_id: str) -> Model:
        """Raises NotFound."""
        return Model.from_proto(self._transport.call(self._stub.GetModel, pb.GetModelRequest(model_id=model_id)).model)

    def list(self, *, kind: ModelKind | str | None = None, limit: int | None = None) -> Iterator[Model]:
        """Base models first, then tuned ones, newest first."""
        request = pb.ListModelsRequest()
        if kind:
            request.kind = enum_number(model_pb2.ModelKind.DESCRIPTOR, kind, "kind")
        return map(Model.from_proto, pages(self._transport, self._stub.ListModels, request, "models", limit))
