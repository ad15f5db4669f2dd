"""Checks a job before its training, stage 1: its settings, its data and the machine. In time order."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from chassis.child.pipe import Cancelled, EventSink, Paused
from engine.config.job import JobConfig, job_config
from engine.data.content_key import content_key, sha256_of
from engine.data.prepare import Prepared, prepare
from engine.data.validation import Report
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.plan.assess import TargetMachine, assess, published
from engine.plan.resolve import Resolved, resolve_length
from finetuneflow.v1.event_pb2 import ArtifactSaved, Phase, StageCompleted, Warning
from finetuneflow.v1.hardware_pb2 import Hardware
from services.hardware import read_hardware
from services.probe.hub_sources import hub_datasets, note_commits
from services.probe.worker.child_input import PreflightInput

_PHASES = ("checking_hardware", "resolving_model", "reading_rows", "tokenising", "resolving_configuration")


def preflight(sink: EventSink, input_path: Path) -> StageCompleted:
    """Checks a job against this machine and its data, and writes the token shards to `out_dir`/shards.

    Raises JobError for what the caller has to correct.
    """
    given = PreflightInput.model_validate_json(input_path.read_bytes())
    config = job_config(given.config)
    resolved = Resolved(config)
    note_commits(resolved, given.hub)
    phases = _Phases(sink)

    phases.enter("checking_hardware")
    hardware = _hardware(given)

    phases.enter("resolving_model", f"{given.model.id} {given.model.revision}".strip())
    asked = "max_length" in given.config.get("hyperparameters", {})
    resolve_length(resolved, given.model.context_length, asked=asked)
    architecture = Architecture.of_folder(given.model.path)

    key = given.content_key or _content_key(resolved.config, given)
    # The preflight of another job finds the shards by this key.
    shards_path = f"shards/{key}"
    if given.shards:
        phases.enter("tokenising", "skipped: the token shards of an earlier job are reused", fraction=1.0)
        (given.out_dir / "shards").mkdir(parents=True, exist_ok=True)
        given.shards.rename(given.out_dir / shards_path)
        prepared = Prepared.read(given.out_dir / shards_path)
    else:
        prepared = _prepared(sink, resolved.config, given, given.out_dir / shards_path, phases, key)
    _save_report(sink, given.out_dir, json.loads((given.out_dir / shards_path / "report.json").read_bytes()), prepared)
    sink.emit(ArtifactSaved(path=shards_path, kind="shards", media_type="inode/directory"))

    phases.enter("resolving_configuration")
    target = TargetMachine(hardware, given.holds_artifacts, given.prices)
    assessment = assess(resolved, given.model.local(), architecture, target, prepared)
    resolved.raise_refusals()
    for warning in resolved.warnings:
        sink.emit(Warning(reason=warning.reason, message=warning.message, advice=warning.advice))
    sink.emit(published(resolved))
    result = assessment.result
    result.shards_path, result.shards_content_key = shards_path, key
    result.shards_reused = given.shards is not None
    result.hub_datasets.extend(hub_datasets(given.hub))
    return StageCompleted(preflight=result)


def _content_key(config: JobConfig, given: PreflightInput) -> str:
    return content_key(config, given.model.path, {name: sha256_of(path) for name, path in given.sources.items()})


def _prepared(
    sink: EventSink, config: JobConfig, given: PreflightInput, shards: Path, phases: "_Phases", key: str
) -> Prepared:
    report = Report()
    shards.parent.mkdir(parents=True, exist_ok=True)
    try:
        return prepare(config, given.model.path, given.sources, shards, phases.progress, report, given.processes, key)
    except JobError as error:
        # The report already has the problems of single rows; an error of the whole data set is added to them.
        if not report.num_errors or error.reason != "BAD_DATA":
            report.refused("", error)
        _save_report(sink, given.out_dir, report.as_dict(), None)
        raise


def _save_report(sink: EventSink, out_dir: Path, report: dict[str, Any], prepared: Prepared | None) -> None:
    """Saves validation_report.json, also if the job is refused: it tells the caller which rows to correct."""
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


class _Phases:
    """Reports the current phase, and handles pause and cancel requests of the supervisor."""

    def __init__(self, sink: EventSink) -> None:
        self._sink = sink
        self._current = ""
        self._said = 0.0

    def enter(self, name: str, detail: str = "", fraction: float | None = None) -> None:
        self._current, self._said = name, time.monotonic()
        phase = Phase(name=name, index=_PHASES.index(name) + 1, count=len(_PHASES), detail=detail)
        if fraction is not None:
            phase.fraction = fraction
        self._sink.emit(phase)

    def progress(self, name: str, fraction: float | None) -> None:
        """Called for every row; emits an event if the phase changes and every two seconds, otherwise a tick."""
        match self._sink.requested():
            case "pause":
                raise Paused
            case "cancel":
                raise Cancelled
        if name != self._current or time.monotonic() - self._said >= 2:
            self.enter(name, fraction=fraction)
        else:
            self._sink.tick()


def _hardware(given: PreflightInput) -> Hardware:
    if given.hardware is None:
        return read_hardware(given.node_id, given.out_dir)
    return json_format.ParseDict(given.hardware, Hardware())
