"""Stage 1 without a job: `python -m services.probe.worker.dry_run SPEC.json`.

The same checks through the same code, but nothing is made: no shards, no artifacts, no events that anybody keeps. It
writes into its out_dir either answer.pb, a PreflightFineTuningJobResponse, or error.json, what the caller has to mend
before anything can be said.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from google.protobuf import json_format

from chassis.child.pipe import Cancelled, EventSink, run_child
from engine.config.job import job_config
from engine.data.prepare import examine
from engine.data.split import Progress
from engine.data.validation import SHOWN, Report
from engine.errors import JobError
from engine.estimate.advice import Improvement, improvements
from engine.estimate.architecture import Architecture
from engine.estimate.estimate_proto import calibration
from finetuneflow.v1 import preflight_pb2 as pb
from finetuneflow.v1.estimate_pb2 import ObservedSpeed
from finetuneflow.v1.event_pb2 import FieldViolation, StageCompleted
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.probe_service_pb2 import PreflightFineTuningJobResponse
from services.probe.worker.answers import answering
from services.probe.worker.child_input import DryRunInput
from services.probe.worker.conclude import TargetMachine, conclude, published
from services.probe.worker.findings import validation_report
from services.probe.worker.hub import hub_datasets, note_commits
from services.probe.worker.resolve import Doubt, Resolved, resolve_length


def dry_run(spec: DryRunInput, progress: Progress) -> PreflightFineTuningJobResponse:
    """Everything that would refuse the job is in the report.

    Raises JobError for what leaves nothing to check: INVALID_CONFIG, UNKNOWN_ARCHITECTURE, a tokenizer that cannot be
    used.
    """
    resolved = Resolved(job_config(spec.config))
    note_commits(resolved, spec.hub)
    asked = "max_length" in spec.config.get("hyperparameters", {})
    resolve_length(resolved, spec.model.context_length, asked=asked)
    architecture = Architecture.of_tensors(spec.architecture, spec.shapes)
    rows = Report()
    prepared = examine(resolved.config, spec.model.path, spec.sources, progress, rows, spec.processes)
    if (refusal := rows.refusal()) is not None:
        resolved.refusals.append(refusal)
    target = TargetMachine(
        json_format.ParseDict(spec.hardware, Hardware()),
        spec.holds_artifacts,
        spec.prices,
        calibration(json_format.ParseDict(each, ObservedSpeed()) for each in spec.observed),
    )
    concluded = conclude(resolved, spec.model, architecture, target, prepared, missing_bytes=spec.missing_bytes)
    concluded.result.hub_datasets.extend(hub_datasets(spec.hub))
    config = published(resolved)
    better = improvements(concluded.facts) if concluded.facts is not None else []
    doubtful = resolved.warnings or rows.num_problems
    verdict = "REFUSED" if resolved.refusals else "WARNINGS" if doubtful else "OK"
    report = pb.PreflightReport(
        verdict=f"VALIDATION_VERDICT_{verdict}",
        findings=[*map(_refusal, resolved.refusals), *map(_doubt, resolved.warnings)],
        improvements=map(_improvement, better),
        validation=validation_report(rows, prepared, resolved.config),
    )
    return PreflightFineTuningJobResponse(
        resolved_spec=config.resolved_spec,
        resolutions=config.resolutions,
        result=concluded.result,
        estimate=concluded.result.estimate,
        report=report,
    )


def main(sink: EventSink, spec_path: Path) -> StageCompleted:
    """Answers the spec's question."""
    spec = DryRunInput.model_validate_json(spec_path.read_bytes())

    def progress(_phase: str, _fraction: float | None) -> None:
        if sink.requested():
            raise Cancelled
        sink.tick()

    with answering(spec.out_dir) as answer:
        answer(dry_run(spec, progress))
    return StageCompleted()


def _refusal(error: JobError) -> pb.Finding:
    return pb.Finding(
        severity="PROBLEM_SEVERITY_ERROR",
        reason=error.reason,
        message=error.message,
        advice=error.advice,
        field=_field(error.violations),
        violations=[FieldViolation(**asdict(violation)) for violation in error.violations[:SHOWN]],
    )


def _field(violations: Sequence[object]) -> str:
    """Of the first one, without the row it may name."""
    path = str(getattr(violations[0], "field", "")) if violations else ""
    return path.removeprefix("spec.").partition(" ")[0]


def _doubt(doubt: Doubt) -> pb.Finding:
    return pb.Finding(severity="PROBLEM_SEVERITY_WARNING", **asdict(doubt))


def _improvement(found: Improvement) -> pb.Improvement:
    return pb.Improvement(**asdict(found))


if __name__ == "__main__":
    run_child(main)
