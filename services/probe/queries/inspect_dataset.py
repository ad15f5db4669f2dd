"""Inspects one dataset as a training would read it: validates all rows, or previews some of them."""

from engine.config.job import job_config
from engine.config.spec_proto import dataset_job
from engine.data.prepare import examine
from engine.data.preview import Preview, preview
from engine.data.split import Progress
from engine.data.validation import Problem, Report, Severity
from engine.errors import JobError
from engine.plan.batching import with_rows_per_step
from engine.plan.findings import row_problem, validation_report
from engine.plan.job_steps import training_rows
from finetuneflow.v1.dataset_service_pb2 import (
    PreviewDatasetRequest,
    PreviewDatasetResponse,
    RowPreview,
    TokenSpan,
    ValidateDatasetRequest,
    ValidateDatasetResponse,
)
from services.probe.queries.corpus_model import model_of
from services.probe.queries.query import ProbeQuery

_MAX_RESPONSE_BYTES = 3 << 20
"""Size limit of a preview; a gRPC client accepts 4 MiB by default."""
_DEFAULT_ROWS = 5


def validate_dataset(query: ProbeQuery, progress: Progress) -> ValidateDatasetResponse:
    """Returns the problems and statistics of all rows."""
    config = job_config(dataset_job(query.parsed(ValidateDatasetRequest())))
    report = Report()
    provided = query.provided
    model, _ = model_of(query, config, progress)
    counted = examine(config, model.path, query.files, progress, report, provided.processes, provided.limits)
    if counted is not None and counted.train.num_examples:
        config = with_rows_per_step(config, training_rows(counted))
    return ValidateDatasetResponse(report=validation_report(report, counted, config))


def preview_dataset(query: ProbeQuery, progress: Progress) -> PreviewDatasetResponse:
    """Returns rows as token ids and labels, up to the size limit of a response.

    Raises JobError("ROW_TOO_LONG") if the first of them exceeds the limit.
    """
    request = query.parsed(PreviewDatasetRequest())
    config = job_config(dataset_job(request))
    file = query.files[request.source.dataset]
    num_rows = request.num_rows or _DEFAULT_ROWS
    response = PreviewDatasetResponse()
    size = num_shown = 0
    model, _ = model_of(query, config, progress)
    for found in preview(config, model.path, file, request.first_row or 1):
        warns = found.problem is not None and found.problem.effect == "warns"
        # A warning stands beside the row that it is about, and is no row of its own.
        if num_shown == num_rows and not (warns and found.row == response.rows[-1].row):
            break
        num_shown += not warns
        row = _row(found)
        size += row.ByteSize()
        if size > _MAX_RESPONSE_BYTES and response.rows:
            break
        if size > _MAX_RESPONSE_BYTES:
            raise JobError(
                "ROW_TOO_LONG",
                f"Row {found.row} exceeds the size limit of a preview, {_MAX_RESPONSE_BYTES >> 20} MiB.",
                "Lower max_length (--max-length), or shorten the row.",
            )
        response.rows.append(row)
    return response


def _row(found: Preview) -> RowPreview:
    row = RowPreview(
        row=found.row,
        text=found.text,
        tokens=found.tokens,
        input_ids=found.input_ids,
        labels=found.labels,
        truncated=found.truncated,
        dropped=found.dropped,
        trained_spans=[TokenSpan(start=start, end=end) for start, end in found.trained_spans()],
    )
    if found.problem is not None:
        wrong = found.problem
        severity: Severity = "error" if wrong.effect == "refuses" else "warning"
        problem = Problem("training_data[0]", wrong.row, wrong.column, wrong.reason, wrong.message, severity)
        row.problem.CopyFrom(row_problem(problem))
    return row
