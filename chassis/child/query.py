"""Query files: the request file that a child process is started with, and the reply file that it leaves.

A query is one call of a gRPC method that a child answers instead of a server: it gets the request and the local files
that the request is about, and leaves the response or the error as a `google.rpc.Status`, the form in which a server
would send it. So a caller gets the same error from a child as from a server.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from pydantic import BaseModel, ConfigDict

from chassis.error_protocols import CallerFault, SystemFault
from chassis.errors import Internal, ServiceError, from_caller_fault, from_status, from_system_fault

M = TypeVar("M", bound=Message)

_REQUEST_FILE: Final = "input.json"
_REPLY_FILE: Final = "reply.pb"
_LAST_LINES: Final = 12
_LAST_LINES_CHARACTERS: Final = 1500
"""The message of a gRPC status is limited; the end of a log is its informative part."""


class Query(BaseModel):
    """The request file. Paths are absolute."""

    # The two processes have the same version: a field that one of them does not know is a defect.
    model_config = ConfigDict(extra="forbid")

    out_dir: Path
    """The folder for the reply file and everything else that the child writes."""
    method: str
    """Name of the method, such as `ValidateDataset`."""
    request: dict[str, Any]
    """The method's request as proto JSON."""
    files: dict[str, Path]
    """The local file of each dataset that the request names. The file keeps the name with which it was uploaded."""

    @classmethod
    def of(cls, folder: Path, method: str, request: Message, files: Mapping[str, Path]) -> Self:
        """Makes a query whose request and reply files are in `folder`."""
        values = MessageToDict(request, preserving_proto_field_name=True)
        return cls(out_dir=folder / "out", method=method, request=values, files=dict(files))

    def parsed(self, request: M) -> M:
        """Returns `request`, filled with the query's request."""
        return ParseDict(self.request, request)

    def write(self, folder: Path) -> Path:
        """Writes the request file into `folder` and returns its path."""
        path = folder / _REQUEST_FILE
        path.write_text(self.model_dump_json(), "utf-8")
        return path


@contextlib.contextmanager
def replying(out_dir: Path) -> Iterator[Callable[[Message], None]]:
    """Yields the function that writes the reply file. An error of the caller or of the system is written as well."""
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        yield lambda response: _write(out_dir, _ok(response))
    except Exception as error:
        if isinstance(error, ServiceError):
            refusal = error
        elif isinstance(error, CallerFault):
            refusal = from_caller_fault(error)
        elif isinstance(error, SystemFault):
            refusal = from_system_fault(error)
        else:
            raise
        _write(out_dir, refusal.status())


def read_reply(
    out_dir: Path, response: M, exit_status: int, last_lines: Sequence[str], refusals: Mapping[int, CallerFault]
) -> M:
    """Returns `response`, filled with the reply of a child that has ended.

    `exit_status` is negative for a signal; `refusals` holds the exit statuses by which a request makes its child end,
    each with the error to raise for it. Raises the ServiceError that the child wrote, and Internal("QUERY_CRASHED")
    with the last lines of its log if it ended without a reply.
    """
    if exit_status in refusals:
        raise from_caller_fault(refusals[exit_status])
    path = out_dir / _REPLY_FILE
    if exit_status != 0 or not path.exists():
        log = "\n".join(last_lines[-_LAST_LINES:])[-_LAST_LINES_CHARACTERS:]
        message = f"The process that ran the query ended with exit status {exit_status}."
        raise Internal("QUERY_CRASHED", f"{message} The last lines of its log:\n{log}" if log else message)
    status = status_pb2.Status.FromString(path.read_bytes())
    if status.code != code_pb2.OK:
        raise from_status(status)
    if not status.details[0].Unpack(response):
        raise TypeError(f"the reply is a {status.details[0].TypeName()}, not a {response.DESCRIPTOR.full_name}")
    return response


def _ok(response: Message) -> status_pb2.Status:
    status = status_pb2.Status(code=code_pb2.OK)
    status.details.add().Pack(response)
    return status


def _write(out_dir: Path, status: status_pb2.Status) -> None:
    (out_dir / _REPLY_FILE).write_bytes(status.SerializeToString())
