"""Pages of evaluation_rows.jsonl, the file in which an evaluation keeps what both models made of each row."""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

from google.protobuf.json_format import ParseDict

from chassis.errors import FailedPrecondition, InvalidArgument, NotFound, Violation
from chassis.store.artifact_store import ArtifactMissing, ArtifactStore
from finetuneflow.v1.evaluation_pb2 import EvaluationRow, RowChange
from finetuneflow.v1.evaluation_service_pb2 import ListEvaluationRowsRequest, ListEvaluationRowsResponse
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from gateway.paging import bad_token, page_of

_MAX_PAGE_BYTES: Final = 2 * 2**20
_LOSS: Final = "loss"


def rows_page(
    request: ListEvaluationRowsRequest, result: EvaluationResult, tenant: str, store: ArtifactStore
) -> ListEvaluationRowsResponse:
    """Reads a page; call it in a thread. InvalidArgument for an unknown metric, NotFound if the file is missing."""
    # A perplexity is one of all rows, and the regression set is not listed.
    names = [metric.name for metric in result.metrics if metric.name not in ("perplexity", "regression_loss")]
    if request.metric and request.metric not in names:
        message = f"the evaluation has no metric {request.metric!r}; it has {', '.join(names)}"
        raise InvalidArgument("UNKNOWN_METRIC", f"metric: {message}.", [Violation("metric", message)])
    if request.change not in RowChange.values():
        message = f"{request.change} is not a change of a row"
        raise InvalidArgument("INVALID_CHANGE", f"change: {message}.", [Violation("change", message)])
    if request.change and result.single_model:
        message = "only one model was measured, so no row is better or worse; remove it"
        raise InvalidArgument("INVALID_CHANGE", f"change: {message}.", [Violation("change", message)])
    page = page_of(request, "rows", request.evaluation_id, request.metric, str(request.change))
    start = _offset(page.after, result.rows_size_bytes)
    try:
        # From the end of the line before, which proves that a line begins at the offset.
        source = store.open_read(f"{tenant}/{result.rows_path}", max(start - 1, 0))
    except ArtifactMissing as error:
        message = "The file of the evaluation's rows is damaged or missing in the artifact store"
        raise NotFound("ARTIFACT_FILE_MISSING", f"{message}; ask the operator to check it.") from error
    with source:
        if start and source.read(1) != b"\n":
            raise bad_token("it is not the next_page_token of an earlier answer")
        found: list[tuple[EvaluationRow, int]] = []
        size = 0
        for values, end in _lines(source, start):
            if not _is_wanted(request, values):
                continue
            row = ParseDict(values, EvaluationRow())
            size += row.ByteSize()
            if found and (len(found) == page.size or size > _MAX_PAGE_BYTES):
                return ListEvaluationRowsResponse(
                    rows=[each for each, _ in found], next_page_token=page.token(str(found[-1][1]))
                )
            found.append((row, end))
    return ListEvaluationRowsResponse(rows=[each for each, _ in found])


def refuse_without_rows(result: bytes | None, evaluation_id: str) -> EvaluationResult:
    """Returns the result. FailedPrecondition if it has no rows."""
    if result is None:
        raise FailedPrecondition("NO_ROWS", f"The evaluation {evaluation_id} has not SUCCEEDED, so it has no rows yet.")
    found = EvaluationResult.FromString(result)
    if not found.rows_path:
        message = f"The evaluation {evaluation_id} has no rows: none are held out, or an earlier version made it."
        raise FailedPrecondition("NO_ROWS", message)
    return found


def _offset(after: str, size: int) -> int:
    offset = int(after) if after.isascii() and after.isdecimal() else 0
    if str(offset) != (after or "0") or offset > size:
        raise bad_token("it is not the next_page_token of an earlier answer")
    return offset


def _lines(source: BinaryIO, start: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Yields each line's values with the offset of its end."""
    for line in source:
        start += len(line)
        yield json.loads(line), start


def _is_wanted(request: ListEvaluationRowsRequest, values: dict[str, Any]) -> bool:
    metric = request.metric or _LOSS
    if request.change:
        wanted: bool = values["changes"].get(metric) == RowChange.Name(request.change)
        return wanted
    return not request.metric or metric in values["changes"] or metric in values["tuned_metrics"]
