"""Checks a job before its training, stage 1: its settings, its data and the machine. In time order."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from engine.config.job import JobConfig
from engine.data.beginnings import Beginnings
from engine.data.content_key import content_key
from engine.data.corpus_tokenizer import PHASE as TRAINING_TOKENIZER
from engine.data.corpus_tokenizer import TrainedTokenizer, train_tokenizer
from engine.data.prepare import Prepared, prepare
from engine.data.split import Progress
from engine.data.validation import Report
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.estimate.estimate_proto import calibration
from engine.evaluation.sets import check_sets, missing_values
from engine.file_hash import sha256_of
from engine.model_folder import has_weights
from engine.plan.assess import TargetMachine, config_resolved_event, resolve_and_assess
from engine.plan.export_checks import check_conversion
from engine.plan.held_out import check_held_out
from engine.plan.resolve import resolve_length
from engine.plan.resolved import Resolved
from engine.plan.trained_tokenizer import note_tokenizer, with_trained_tokenizer
from engine.plan.uploaded_adapter import take_uploaded_adapter
from engine.random_reference import CORPUS_TOKENIZER, RandomReference
from finetuneflow.v1.estimate_pb2 import ObservedSpeed
from finetuneflow.v1.event_pb2 import ArtifactSaved, StageCompleted, Warning
from finetuneflow.v1.hardware_pb2 import Hardware
from services.child_input import ModelFiles
from services.hardware import read_hardware
from services.probe.hub_sources import hub_datasets, note_commits
from services.probe.worker.child_input import PreflightInput

_PHASES = ("checking_hardware", "resolving_model", "reading_rows", "tokenising", "resolving_configuration")
_WITH_TOKENIZER = (*_PHASES[:2], TRAINING_TOKENIZER, *_PHASES[2:])


def preflight(sink: EventSink, input_path: Path) -> StageCompleted:
    """Checks a job against this machine and its data, and writes the token shards to `out_dir`/shards.

    Raises JobError for what the caller has to correct.
    """
    child_input = PreflightInput.model_validate_json(input_path.read_bytes())
    child_input.limits.apply()
    resolved = Resolved(child_input.config)
    note_commits(resolved, child_input.hub)
    model, named = child_input.model, RandomReference.parse(child_input.model.id)
    trains = named is not None and named.needs_corpus
    phases = Phases(sink, _WITH_TOKENIZER if trains else _PHASES, pausable=True)

    phases.enter("checking_hardware")
    hardware = _hardware(child_input)

    phases.enter("resolving_model", f"{model.id} {model.revision}".strip())
    asked = "max_length" in child_input.given.get("hyperparameters", {})
    resolve_length(resolved, model.context_length, asked=asked)
    beginnings = None
    if trains:
        with _report_saved(sink, child_input.out_dir, Report()):
            beginnings = _beginnings(resolved.config, child_input, phases, TRAINING_TOKENIZER)
            model = _with_tokenizer(resolved, child_input, phases, beginnings)
    architecture = Architecture.of_folder(model.path)

    if resolved.config.start_from in child_input.sources:
        lora = child_input.given.get("lora", {})
        take_uploaded_adapter(resolved, child_input.sources[resolved.config.start_from], lora, architecture)

    scratch = child_input.out_dir / "regression"
    check_sets(resolved.config, child_input.sources, model.path, scratch, phases.check)
    key = child_input.content_key or _content_key(resolved.config, child_input)
    # The preflight of another job finds the shards by this key.
    shards_path = f"shards/{key}"
    if child_input.shards:
        phases.enter("tokenising", "skipped: the token shards of an earlier job are reused", fraction=1.0)
        (child_input.out_dir / "shards").mkdir(parents=True, exist_ok=True)
        child_input.shards.rename(child_input.out_dir / shards_path)
        prepared = Prepared.read(child_input.out_dir / shards_path)
    else:
        prepared = _prepared(sink, resolved.config, model, child_input, phases, key, beginnings)
    if named is not None and (trains or named.corpus_sha256):
        # Each job has its tokenizer among its own artifacts, because another job's may be deleted.
        kept = child_input.out_dir / shards_path / CORPUS_TOKENIZER
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(model.path / kept.name, kept)
    report = json.loads((child_input.out_dir / shards_path / "report.json").read_bytes())
    _save_report(sink, child_input.out_dir, report, prepared)
    sink.emit(ArtifactSaved(path=shards_path, kind="shards", media_type="inode/directory"))

    phases.enter("resolving_configuration")
    speeds = calibration(json_format.ParseDict(speed, ObservedSpeed()) for speed in child_input.observed)
    target = TargetMachine(hardware, child_input.holds_artifacts, child_input.prices, speeds)
    missing = 0 if has_weights(model.path) else 4 * architecture.num_parameters
    assessment = resolve_and_assess(resolved, model.local(), architecture, target, prepared, missing_bytes=missing)
    check_conversion(resolved, model.path, child_input.out_dir, phases.check)
    check_held_out(resolved, child_input.trained_data)
    for message in missing_values(resolved.config.evaluation, child_input.out_dir / shards_path / "eval_rows.jsonl"):
        resolved.warn("GRADER_VALUE_MISSING", message, "Correct its placeholder.", "evaluation.graders")
    resolved.raise_refusals()
    for warning in resolved.warnings:
        sink.emit(Warning(reason=warning.reason, message=warning.message, advice=warning.advice))
    sink.emit(config_resolved_event(resolved))
    result = assessment.result
    result.shards_path, result.shards_content_key = shards_path, key
    result.shards_reused = child_input.shards is not None
    result.hub_datasets.extend(hub_datasets(child_input.hub))
    return StageCompleted(preflight=result)


def _content_key(config: JobConfig, child_input: PreflightInput) -> str:
    return content_key(
        config, child_input.model.path, {name: sha256_of(path) for name, path in child_input.sources.items()}
    )


def _beginnings(config: JobConfig, child_input: PreflightInput, phases: Phases, phase: str) -> Beginnings | None:
    """Reads the files of a streamed corpus, one after the other; None for other jobs and for shards that are reused."""
    if not config.hyperparameters.streaming or child_input.shards:
        return None
    progress = partial(_progress(child_input, phases), phase)
    return Beginnings.read(config, child_input.sources, progress, child_input.requests)


def _with_tokenizer(
    resolved: Resolved, child_input: PreflightInput, phases: Phases, beginnings: Beginnings | None
) -> ModelFiles:
    """Returns the base model with a tokenizer trained on the rows, or with that of the shards that are reused."""
    progress, folder = _progress(child_input, phases), child_input.out_dir / "model"
    if child_input.shards:
        phases.enter(TRAINING_TOKENIZER, "skipped: the token shards of an earlier job have it", fraction=1.0)
        trained = TrainedTokenizer.read(child_input.shards / CORPUS_TOKENIZER)
    else:
        config, scratch = resolved.config, child_input.out_dir / "tokenizer"
        trained = train_tokenizer(
            config, child_input.sources, scratch, progress, child_input.limits, beginnings=beginnings
        )
    model = with_trained_tokenizer(child_input.model.local(), trained.file, folder)
    note_tokenizer(resolved, trained)
    return ModelFiles(**asdict(model))


def _progress(child_input: PreflightInput, phases: Phases) -> Progress:
    def progress(phase: str, fraction: float | None) -> None:
        child_input.limits.check_processor_time()
        phases.advance(phase, fraction)

    return progress


def _prepared(
    sink: EventSink,
    config: JobConfig,
    model: ModelFiles,
    child_input: PreflightInput,
    phases: Phases,
    key: str,
    beginnings: Beginnings | None,
) -> Prepared:
    shards = child_input.out_dir / "shards" / key
    shards.parent.mkdir(parents=True, exist_ok=True)
    report = Report()
    with _report_saved(sink, child_input.out_dir, report):
        return prepare(
            config,
            model.path,
            child_input.sources,
            shards,
            _progress(child_input, phases),
            report,
            child_input.processes,
            key,
            beginnings=beginnings or _beginnings(config, child_input, phases, "reading_rows"),
            limits=child_input.limits,
        )


@contextmanager
def _report_saved(sink: EventSink, out_dir: Path, report: Report) -> Iterator[None]:
    """Saves the report if the block refuses the rows."""
    try:
        yield
    except JobError as error:
        # The report already has the problems of single rows; an error of the whole data set is added to them.
        if not report.num_errors or error.reason != "BAD_DATA":
            report.refused("", error)
        _save_report(sink, out_dir, report.as_dict(), None)
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


def _hardware(child_input: PreflightInput) -> Hardware:
    if child_input.hardware is None:
        return read_hardware(child_input.node_id, child_input.out_dir)
    return json_format.ParseDict(child_input.hardware, Hardware())
