"""A look into one dataset, without a job: `python -m services.probe.worker.look SPEC.json`.

It writes into its out_dir either answer.pb, the response as the contract has it, or error.json, what the caller has to
mend.
"""

from pathlib import Path

from google.protobuf.message import Message

from chassis.child.pipe import Cancelled, EventSink, run_child
from engine.config.job import JobConfig, job_config
from engine.data.prepare import examine
from engine.data.preview import Preview, preview
from engine.data.validation import Problem, Report, Severity
from engine.errors import JobError
from finetuneflow.v1.dataset_service_pb2 import (
    PreviewDatasetResponse,
    RowPreview,
    TokenSpan,
    ValidateDatasetResponse,
)
from finetuneflow.v1.event_pb2 import StageCompleted
from services.probe.worker.answers import answering
from services.probe.worker.child_input import InspectionInput
from services.probe.worker.findings import row_problem, validation_report

_MAX_ANSWER_BYTES = 3 << 20
"""Clients take 4 MiB by default."""


def main(sink: EventSink, spec_path: Path) -> StageCompleted:
    """Answers the spec's question."""
    spec = InspectionInput.model_validate_json(spec_path.read_bytes())
    with answering(spec.out_dir) as answer:
        config = job_config(spec.config)
        answer(_preview(config, spec) if spec.num_rows else _validate(config, spec, sink))
    return StageCompleted()


def _validate(config: JobConfig, spec: InspectionInput, sink: EventSink) -> Message:
    def progress(_phase: str, _fraction: float | None) -> None:
        if sink.requested():
            raise Cancelled
        sink.tick()

    report = Report()
    sources = {config.training_data[0].dataset: spec.file}
    counted = examine(config, spec.tokenizer_dir, sources, progress, report, spec.processes)
    return ValidateDatasetResponse(report=validation_report(report, counted, config))


def _preview(config: JobConfig, spec: InspectionInput) -> Message:
    answer = PreviewDatasetResponse()
    size = 0
    for found in preview(config, spec.tokenizer_dir, spec.file, spec.first_row):
        row = _row(found)
        size += row.ByteSize()
        if size > _MAX_ANSWER_BYTES and answer.rows:
            break
        if size > _MAX_ANSWER_BYTES:
            raise JobError(
                "ROW_TOO_LONG",
                f"Row {found.row} is too long to be shown.",
                "Ask for it with a smaller max_length, or shorten it.",
            )
        answer.rows.append(row)
        if len(answer.rows) == spec.num_rows:
            break
    return answer


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


if __name__ == "__main__":
    run_child(main)
