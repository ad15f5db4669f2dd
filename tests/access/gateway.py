"""A real gateway process with keys, and calls of any of its methods by name."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from chassis.errors import DETAILS_KEY
from finetuneflow.v1 import (
    artifact_service_pb2,
    audit_service_pb2,
    dataset_service_pb2,
    evaluation_service_pb2,
    evaluator_service_pb2,
    export_service_pb2,
    exporter_service_pb2,
    fine_tuning_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    model_service_pb2,
    probe_service_pb2,
    recipe_service_pb2,
    secret_service_pb2,
    tenant_service_pb2,
    trainer_service_pb2,
)
from standalone.guard import guarded
from standalone.ports import free_port
from tests.servers.nats import NatsServer

_MODULES = (
    artifact_service_pb2,
    audit_service_pb2,
    dataset_service_pb2,
    evaluation_service_pb2,
    evaluator_service_pb2,
    export_service_pb2,
    exporter_service_pb2,
    fine_tuning_service_pb2,
    integration_service_pb2,
    key_service_pb2,
    model_service_pb2,
    probe_service_pb2,
    recipe_service_pb2,
    secret_service_pb2,
    tenant_service_pb2,
    trainer_service_pb2,
)
METHODS: dict[str, MethodDescriptor] = {
    f"{service.name}.{method.name}": method
    for module in _MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of the contract, by service and name."""
CALL_SECONDS = 30.0


@dataclass(frozen=True)
class Answer:
    """The end of a call."""

    code: grpc.StatusCode
    reason: str
    message: str
    responses: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.code.name} {self.reason} {self.message}"


class AccessGateway:
    """One gateway that asks for keys, with SQLite and a broker. No service runs behind it."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.home = home
        self.nats = NatsServer(home)
        self.address = f"127.0.0.1:{free_port()}"
        self.database = f"sqlite:///{home / 'gateway.sqlite'}"
        self.key_file = home / "operator.key"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.nats.start()
        environment = {
            "FTF_HOME": str(self.home),
            **self.nats.environment("gateway"),
            "FTF_GATEWAY_LISTEN": self.address,
            "FTF_GATEWAY_OPERATOR_KEY_FILE": str(self.key_file),
            **{f"FTF_GATEWAY_{key}": value for key, value in self._settings.items()},
        }
        with (self.home / "gateway.log").open("ab") as log:
            self._process = subprocess.Popen(
                guarded([sys.executable, "-m", "gateway"]), env=os.environ | environment, stdout=log, stderr=log
            )
        with grpc.insecure_channel(self.address) as channel:
            grpc.channel_ready_future(channel).result(120)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self.nats.stop()

    @property
    def operator(self) -> str:
        """The first operator's key."""
        return self.key_file.read_text().strip()

    @property
    def log(self) -> str:
        return (self.home / "gateway.log").read_text()

    @property
    def resident_bytes(self) -> int:
        assert self._process is not None
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def call(
        self, name: str, token: str | None, request: Message | None = None, *, authorization: str | None = None
    ) -> Answer:
        """Calls a method of `METHODS`. Of a stream of responses the first two are read. None: no credentials."""
        with grpc.insecure_channel(self.address) as channel:
            return call(channel, name, token, request, authorization=authorization)


def call(
    channel: grpc.Channel,
    name: str,
    token: str | None,
    request: Message | None = None,
    *,
    authorization: str | None = None,
    seconds: float = CALL_SECONDS,
) -> Answer:
    """The same on a channel."""
    method = METHODS[name]
    request = request if request is not None else GetMessageClass(method.input_type)()
    if authorization is None and token is not None:
        authorization = f"Bearer {token}"
    metadata = (("authorization", authorization),) if authorization is not None else ()
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    invoke = getattr(channel, shape)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    responses: list[Any] = []
    try:
        answer = invoke(iter([request]) if method.client_streaming else request, timeout=seconds, metadata=metadata)
        if method.server_streaming:
            for response in answer:
                responses.append(response)
                if len(responses) == 2:
                    answer.cancel()
                    break
        else:
            responses.append(answer)
    except grpc.RpcError as error:
        return _answer(error, responses)
    return Answer(grpc.StatusCode.OK, "", "", tuple(responses))


def _answer(error: Any, responses: list[Any]) -> Answer:
    status, info = status_pb2.Status(), error_details_pb2.ErrorInfo()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status.MergeFromString(value)
    for detail in status.details:
        detail.Unpack(info)
    return Answer(error.code(), info.reason, error.details() or "", tuple(responses))
