"""Runs the checks of stage 1 without a job.

They are the checks of a preflight, by the same code, but nothing is created: no token shards, artifacts or events.
"""

from collections.abc import Sequence
from dataclasses import asdict

from google.protobuf import json_format

from engine.config.job import job_config
from engine.config.spec_proto import spec_to_dict
from engine.config.start import TrainedData
from engine.data.prepare import examine
from engine.data.split import Progress
from engine.data.validation import SHOWN, Report
from engine.errors import JobError
from engine.estimate.advice import Improvement, improvements
from engine.estimate.architecture import Architecture
from engine.estimate.estimate_proto import calibration
from engine.evaluation.sets import check_sets, missing_values
from engine.plan.assess import TargetMachine, config_resolved_event, resolve_and_assess
from engine.plan.export_checks import check_conversion
from engine.plan.findings import validation_report
from engine.plan.held_out import check_held_out
from engine.plan.resolve import resolve_length
from engine.plan.resolved import JobWarning, Resolved
from engine.plan.trained_tokenizer import note_tokenizer
from engine.plan.uploaded_adapter import take_uploaded_adapter
from finetuneflow.v1 import preflight_pb2 as pb
from finetuneflow.v1.event_pb2 import FieldViolation
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.probe_service_pb2 import PreflightFineTuningJobRequest, PreflightFineTuningJobResponse
from services.probe.hub_sources import hub_datasets, note_commits
from services.probe.queries.corpus_model import model_of
from services.probe.queries.query import PreflightFacts, ProbeQuery


def dry_run(query: ProbeQuery, progress: Progress) -> PreflightFineTuningJobResponse:
    """Returns the settings, estimate, warnings and refusals that a job with this spec would get.

    Raises JobError if nothing can be checked: INVALID_CONFIG, UNKNOWN_ARCHITECTURE, or a tokenizer that cannot be used.
    """
    request = query.parsed(PreflightFineTuningJobRequest())
    facts = _facts(query)
    values = spec_to_dict(request.spec)
    resolved = Resolved(job_config(values))
    note_commits(resolved, facts.hub)
    asked = "max_length" in values.get("hyperparameters", {})
    resolve_length(resolved, query.provided.model.context_length, asked=asked)
    model, trained = model_of(query, resolved.config, progress)
    architecture = Architecture.of_tensors(facts.config, facts.shapes)
    if trained is not None:
        note_tokenizer(resolved, trained)
        architecture = Architecture.of_folder(model.path)
    if (start := query.files.get(resolved.config.start_from)) is not None:
        try:
            take_uploaded_adapter(resolved, start, values.get("lora", {}), architecture)
        except JobError as error:
            resolved.refusals.append(error)
    try:
        check_sets(resolved.config, query.files, model.path, query.out_dir / "regression", lambda: None)
    except JobError as error:
        resolved.refusals.append(error)
    rows = Report()
    held_out = query.out_dir / "eval_rows.jsonl"
    prepared = examine(
        resolved.config,
        model.path,
        query.files,
        progress,
        rows,
        query.provided.processes,
        query.provided.limits,
        held_out=held_out,
    )
    if (refusal := rows.refusal()) is not None:
        resolved.refusals.append(refusal)
    hardware = json_format.ParseDict(facts.hardware, Hardware())
    target = TargetMachine(hardware, facts.holds_artifacts, facts.prices, calibration(request.observed))
    assessment = resolve_and_assess(resolved, model, architecture, target, prepared, missing_bytes=facts.missing_bytes)
    for message in missing_values(resolved.config.evaluation, held_out):
        resolved.warn("GRADER_VALUE_MISSING", message, "Correct its placeholder.", "evaluation.graders")
    check_conversion(resolved, model.path, query.out_dir, lambda: None)
    check_held_out(resolved, [TrainedData(list(data.datasets), data.split_key) for data in request.trained_data])
    assessment.result.hub_datasets.extend(hub_datasets(facts.hub))
    config = config_resolved_event(resolved)
    found = improvements(assessment.facts) if assessment.facts is not None else []
    warned = resolved.warnings or rows.num_problems
    verdict = "REFUSED" if resolved.refusals else "WARNINGS" if warned else "OK"
    report = pb.PreflightReport(
        verdict=f"VALIDATION_VERDICT_{verdict}",
        findings=[*map(_refusal, resolved.refusals), *map(_warning, resolved.warnings)],
        improvements=map(_improvement, found),
        validation=validation_report(rows, prepared, resolved.config),
    )
    return PreflightFineTuningJobResponse(
        resolved_spec=config.resolved_spec,
        resolutions=config.resolutions,
        result=assessment.result,
        estimate=assessment.result.estimate,
        report=report,
    )


def _facts(query: ProbeQuery) -> PreflightFacts:
    facts = query.provided.preflight
    if facts is None:
        raise ValueError("the query has no facts for a preflight")
    return facts


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
    """Returns the path of the first violation, without the row that it may name."""
    path = str(getattr(violations[0], "field", "")) if violations else ""
    return path.removeprefix("spec.").partition(" ")[0]


def _warning(warning: JobWarning) -> pb.Finding:
    return pb.Finding(severity="PROBLEM_SEVERITY_WARNING", **asdict(warning))


def _improvement(found: Improvement) -> pb.Improvement:
    return pb.Improvement(**asdict(found))
