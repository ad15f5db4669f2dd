"""What a handler raises, and the one table that turns it into a gRPC status."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from chassis.error_protocols import CallerFault, FieldProblem, SystemFault, Violation

__all__ = [
    "DETAILS_KEY",
    "DOMAIN",
    "Aborted",
    "AlreadyExists",
    "CallerFault",
    "FailedPrecondition",
    "FieldProblem",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "ResourceExhausted",
    "ServiceError",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "from_caller_fault",
    "from_status",
    "from_system_fault",
]

DOMAIN = "finetuneflow"
DETAILS_KEY = "grpc-status-details-bin"
_MAX_MESSAGE = 2000


class ServiceError(Exception):
    """An answer to the caller. Raise one of the subclasses; each is one gRPC status.

    `reason` is machine-readable (UPPER_SNAKE_CASE), `message` a sentence for people. `violations` become a BadRequest,
    `metadata` goes into the ErrorInfo.
    """

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    def __init__(
        self,
        reason: str,
        message: str,
        violations: Sequence[FieldProblem] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        if not re.fullmatch(r"[A-Z][A-Z0-9_]*[A-Z0-9]", reason):
            raise ValueError(f"a reason is UPPER_SNAKE_CASE: {reason!r}")
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.metadata = dict(metadata or {})

    def status(self) -> status_pb2.Status:
        """As google.rpc.Status: ErrorInfo always, BadRequest when fields are at fault."""
        details: list[any_pb2.Any] = []
        info = any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata))
        details.append(info)
        if self.violations:
            bad = any_pb2.Any()
            fields = [
                error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description)
                for v in self.violations
            ]
            bad.Pack(error_details_pb2.BadRequest(field_violations=fields))
            details.append(bad)
        return status_pb2.Status(
            code=code_pb2.Code.Value(self.code.name), message=_shortened(self.message), details=details
        )


def _shortened(message: str) -> str:
    """It travels in a header: a caller that is told its own megabyte back gets no status at all."""
    return message if len(message) <= _MAX_MESSAGE else f"{message[:_MAX_MESSAGE]}…"


class InvalidArgument(ServiceError):
    """The request itself is wrong, whatever the state of the system."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServiceError):
    """What the request names does not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServiceError):
    """What was to be made exists, and differs."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServiceError):
    """Right request, wrong state; repeating it does not help before the state changes."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class OutOfRange(ServiceError):
    """Beyond the end of something."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(ServiceError):
    """A limit was reached."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Aborted(ServiceError):
    """Somebody else is at it; trying again helps."""

    code = grpc.StatusCode.ABORTED


class Unimplemented(ServiceError):
    """Part of the contract that this server does not serve yet."""

    code = grpc.StatusCode.UNIMPLEMENTED


class Unavailable(ServiceError):
    """Something needed is away; the caller may try again."""

    code = grpc.StatusCode.UNAVAILABLE


class Internal(ServiceError):
    """Our fault. Only the server itself raises it, for what nobody expected."""

    code = grpc.StatusCode.INTERNAL


def from_caller_fault(fault: CallerFault) -> InvalidArgument:
    """The status for an exception of the domain that names what the caller can mend."""
    # A short refusal carries its advice in the sentence already.
    message = fault.message if fault.advice in fault.message else f"{fault.message} {fault.advice}"
    return InvalidArgument(fault.reason, message, fault.violations)


def from_system_fault(fault: SystemFault) -> Unavailable:
    """Returns the status for an exception that a retry may cure."""
    return Unavailable(fault.reason, f"{fault.message} {fault.advice}".rstrip())


def from_status(status: status_pb2.Status) -> ServiceError:
    """Returns the exception whose `status()` is `status`."""
    reason, metadata, violations = "", {}, []
    for detail in status.details:
        info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations += [Violation(each.field, each.description) for each in bad_request.field_violations]
    kinds = {kind.code.value[0]: kind for kind in ServiceError.__subclasses__()}
    return kinds[status.code](reason, status.message, violations, metadata)
