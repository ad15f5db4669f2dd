"""The reply of a query's child contains the response, or the error that a server would return."""

from pathlib import Path

import grpc
import pytest

from chassis.child.query import Query, read_reply, replying
from chassis.errors import Internal, InvalidArgument, NotFound, ServiceError, Unavailable, Violation
from finetuneflow.v1.dataset_service_pb2 import PreviewDatasetRequest, ValidateDatasetResponse
from finetuneflow.v1.event_pb2 import Phase


class Fault(Exception):
    reason, message, advice = "HUB_UNREACHABLE", "The hub is away.", "Try again."


class Refusal(Fault):
    reason = "BAD_DATA"
    violations = (Violation("spec.base_model", "is wrong"),)


def reply(folder: Path, error: Exception) -> ServiceError:
    with replying(folder):
        raise error
    with pytest.raises(ServiceError) as caught:
        read_reply(folder, Phase(), 0, [], {})
    return caught.value


def test_child_receives_request_unchanged(tmp_path: Path) -> None:
    request = PreviewDatasetRequest(base_model="m", first_row=2**40)
    query = Query.of(tmp_path, "PreviewDataset", request, {"ds_1": tmp_path / "rows.jsonl"})
    read = Query.model_validate_json(query.write(tmp_path).read_bytes())
    assert read == query
    assert read.parsed(PreviewDatasetRequest()) == request


def test_response_is_returned_unchanged(tmp_path: Path) -> None:
    with replying(tmp_path / "out") as write:
        write(Phase(name="tokenising", index=3))
    assert read_reply(tmp_path / "out", Phase(), 0, [], {}) == Phase(name="tokenising", index=3)
    with pytest.raises(TypeError):
        read_reply(tmp_path / "out", ValidateDatasetResponse(), 0, [], {})


def test_error_of_child_keeps_its_fault(tmp_path: Path) -> None:
    refused = reply(tmp_path, Refusal())
    assert isinstance(refused, InvalidArgument)
    assert (refused.reason, refused.message) == ("BAD_DATA", "The hub is away. Try again.")
    assert refused.violations == (Violation("spec.base_model", "is wrong"),)
    away = reply(tmp_path, Fault())
    assert isinstance(away, Unavailable)
    assert away.code is grpc.StatusCode.UNAVAILABLE
    missing = reply(tmp_path, NotFound("NODE_NOT_FOUND", "No such node.", metadata={"node_id": "n"}))
    assert isinstance(missing, NotFound)
    assert missing.metadata == {"node_id": "n"}


def test_error_of_child_without_response_contains_end_of_its_log(tmp_path: Path) -> None:
    """A response that was written before a crash is not taken for the result."""
    with pytest.raises(ZeroDivisionError), replying(tmp_path):
        raise ZeroDivisionError
    log = [f"line {n}" for n in range(100)]
    with pytest.raises(Internal) as caught:
        read_reply(tmp_path, Phase(), 1, log, {})
    assert "exit status 1" in caught.value.message
    assert "line 99" in caught.value.message
    assert "line 50" not in caught.value.message
    with replying(tmp_path) as write:
        write(Phase())
    with pytest.raises(Internal):
        read_reply(tmp_path, Phase(), -11, log, {})
    with pytest.raises(InvalidArgument) as refused:
        read_reply(tmp_path, Phase(), -26, log, {-26: Refusal()})
    assert refused.value.reason == "BAD_DATA"
