"""Stage 1: will it fit, is it right. Reads top to bottom in the order it happens."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from engine.config.job import JobConfig, job_config
from engine.data.content_key import content_key
from engine.data.prepare import Prepared, prepare
from engine.data.validation import Report
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.file_hash import sha256_of
from finetuneflow.v1.event_pb2 import ArtifactSaved, StageCompleted, Warning
from finetuneflow.v1.hardware_pb2 import Hardware
from services.hardware import read_hardware
from services.probe.worker.child_input import PreflightInput
from services.probe.worker.conclude import TargetMachine, conclude, published
from services.probe.worker.hub import hub_datasets, note_commits
from services.probe.worker.resolve import Resolved, resolve_length

_PHASES = ("checking_hardware", "resolving_model", "reading_rows", "tokenising", "resolving_configuration")


def preflight(sink: EventSink, spec_path: Path) -> StageCompleted:
    """Checks a job against this machine and its data, and writes the token shards to `out_dir`/shards.

    Raises JobError for what the caller has to mend.
    """
    spec = PreflightInput.model_validate_json(spec_path.read_bytes())
    config = job_config(spec.config)
    resolved = Resolved(config)
    note_commits(resolved, spec.hub)
    phases = Phases(sink, _PHASES, pausable=True)

    phases.enter("checking_hardware")
    hardware = _hardware(spec)

    phases.enter("resolving_model", f"{spec.model.id} {spec.model.revision}".strip())
    asked = "max_length" in spec.config.get("hyperparameters", {})
    resolve_length(resolved, spec.model.context_length, asked=asked)
    architecture = Architecture.of_folder(spec.model.path)

    key = spec.content_key or _content_key(resolved.config, spec)
    # The key is what another job's preflight finds them by.
    shards_path = f"shards/{key}"
    if spec.shards:
        phases.enter("tokenising", "not needed: the token shards of an earlier job are taken", fraction=1.0)
        (spec.out_dir / "shards").mkdir(parents=True, exist_ok=True)
        spec.shards.rename(spec.out_dir / shards_path)
        prepared = Prepared.read(spec.out_dir / shards_path)
    else:
        prepared = _prepared(sink, resolved.config, spec, spec.out_dir / shards_path, phases, key)
    _save_report(sink, spec.out_dir, json.loads((spec.out_dir / shards_path / "report.json").read_bytes()), prepared)
    sink.emit(ArtifactSaved(path=shards_path, kind="shards", media_type="inode/directory"))

    phases.enter("resolving_configuration")
    target = TargetMachine(hardware, spec.holds_artifacts, spec.prices)
    concluded = conclude(resolved, spec.model, architecture, target, prepared)
    resolved.raise_refusals()
    for doubt in resolved.warnings:
        sink.emit(Warning(reason=doubt.reason, message=doubt.message, advice=doubt.advice))
    sink.emit(published(resolved))
    result = concluded.result
    result.shards_path, result.shards_content_key = shards_path, key
    result.shards_reused = spec.shards is not None
    result.hub_datasets.extend(hub_datasets(spec.hub))
    return StageCompleted(preflight=result)


def _content_key(config: JobConfig, spec: PreflightInput) -> str:
    return content_key(config, spec.model.path, {name: sha256_of(path) for name, path in spec.sources.items()})


def _prepared(
    sink: EventSink, config: JobConfig, spec: PreflightInput, shards: Path, phases: Phases, key: str
) -> Prepared:
    report = Report()
    shards.parent.mkdir(parents=True, exist_ok=True)
    try:
        return prepare(config, spec.model.path, spec.sources, shards, phases.advance, report, spec.processes, key)
    except JobError as error:
        # Of rows that are wrong the report knows; what is wrong with the whole may come beside them.
        if not report.num_errors or error.reason != "BAD_DATA":
            report.refused("", error)
        _save_report(sink, spec.out_dir, report.as_dict(), None)
        raise


def _save_report(sink: EventSink, out_dir: Path, report: dict[str, Any], prepared: Prepared | None) -> None:
    """For whoever has to mend the data: also, and above all, when the job is refused."""
    out_dir.mkdir(parents=True, exist_ok=True)
    counted: dict[str, Any] = (
        {} if prepared is None else {"training_data": asdict(prepared.train), "evaluation_data": asdict(prepared.eval)}
    )
    if prepared is not None and len(prepared.phases) > 1:
        counted["phases"] = [asdict(phase) for phase in prepared.phases]
    text = json.dumps({**report, **counted}, indent=1, ensure_ascii=False)
    (out_dir / "validation_report.json").write_text(text + "\n", encoding="utf-8")
    saved = ArtifactSaved(path="validation_report.json", kind="validation_report", media_type="application/json")
    sink.emit(saved)


def _hardware(spec: PreflightInput) -> Hardware:
    if spec.hardware is None:
        return read_hardware(spec.node_id, spec.out_dir)
    return json_format.ParseDict(spec.hardware, Hardware())
