"""Stage 1: will it fit, is it right. Reads top to bottom in the order it happens."""

import json
import time
from dataclasses import asdict
from pathlib import Path

from google.protobuf import json_format

from chassis.pipe import Cancelled, EventSink, Paused
from engine.config.job import JobConfig, job_config
from engine.config.wire import config_to_spec
from engine.data.prepare import Prepared, prepare
from engine.data.validation import Report
from engine.errors import JobError
from engine.estimate.architecture import Architecture
from engine.estimate.cost import PriceTable
from engine.estimate.duration import Calibration, Work
from engine.estimate.kept import Method
from engine.estimate.machine import Machine
from engine.estimate.recommend import plan
from engine.estimate.wire import estimate_message
from finetuneflow.v1.estimate_pb2 import ResourceEstimate
from finetuneflow.v1.event_pb2 import ArtifactSaved, ConfigResolved, Phase, StageCompleted, Warning
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, PreflightResult
from services.hardware import read_hardware
from services.probe.worker.findings import data_statistics
from services.probe.worker.resolve import Resolved, resolve, resolve_length, total_steps
from services.probe.worker.spec import PreflightSpec
from services.specs import ModelFiles

_PHASES = ("checking_hardware", "resolving_model", "reading_rows", "tokenising", "resolving_configuration")
_FEW_ROWS = 50
_MAX_SPEC_BYTES = 56 * 1024
"""The resolved spec travels in one event of at most 64 KiB."""


def preflight(sink: EventSink, spec_path: Path) -> StageCompleted:
    """Checks a job against this machine and its data, and writes the token shards to `out_dir`/shards.

    Raises JobError for what the caller has to mend.
    """
    spec = PreflightSpec.model_validate_json(spec_path.read_bytes())
    config = job_config(spec.config)
    resolved = Resolved(config)
    phases = _Phases(sink)

    phases.enter("checking_hardware")
    hardware = _hardware(spec)

    phases.enter("resolving_model", f"{spec.model.id} {spec.model.revision}".strip())
    asked = "max_length" in spec.config.get("hyperparameters", {})
    resolve_length(resolved, spec.model.context_length, asked=asked)
    architecture = Architecture.of_folder(spec.model.path)

    shards = spec.out_dir / "shards"
    report = Report()
    try:
        prepared = prepare(
            resolved.config, spec.model.path, spec.sources, shards, phases.progress, report, spec.processes
        )
    except JobError as error:
        if not report.num_errors:
            report.refused("", error)
        _save_report(sink, spec.out_dir, report, None)
        raise
    _save_report(sink, spec.out_dir, report, prepared)
    sink.emit(ArtifactSaved(path="shards", kind="shards", media_type="inode/directory"))

    phases.enter("resolving_configuration")
    resolve(resolved, hardware, architecture, prepared.train.max_tokens)
    steps = total_steps(prepared.num_sequences, resolved.config.hyperparameters)
    _doubt(resolved, prepared, report, steps)
    for reason, message, advice in resolved.warnings:
        sink.emit(Warning(reason=reason, message=message, advice=advice))
    sink.emit(_published(resolved))
    return StageCompleted(
        preflight=PreflightResult(
            base_model=_identity(spec.model),
            training_data=data_statistics(prepared.train),
            evaluation_data=data_statistics(prepared.eval) if prepared.eval.num_examples else None,
            total_steps=steps,
            shards_path="shards",
            hardware=hardware,
            warnings=[message for _, message, _ in resolved.warnings],
            estimate=_estimate(resolved.config, hardware, architecture, prepared, steps, spec.prices),
        )
    )


def _estimate(
    config: JobConfig,
    hardware: Hardware,
    architecture: Architecture,
    prepared: Prepared,
    steps: int,
    prices: Path | None,
) -> ResourceEstimate:
    """Of the resolved configuration; every evaluation reads all held-out rows."""
    machine = Machine.of(hardware, gpus=config.resources.gpus)
    hyper, train = config.hyperparameters, prepared.train
    method: Method = "lora" if config.method == "auto" else config.method
    found = plan(architecture, machine, config, method, train.max_tokens)
    share = steps * hyper.per_device_train_batch_size * hyper.gradient_accumulation_steps / prepared.num_sequences
    evaluations = steps // hyper.eval_steps + 1
    return estimate_message(
        architecture,
        machine,
        *found.unreduced,
        found.verdict,
        work=Work(train.num_tokens * share, prepared.eval.num_tokens * evaluations),
        calibration=Calibration(),
        prices=PriceTable.read(prices),
    )


def _save_report(sink: EventSink, out_dir: Path, report: Report, prepared: Prepared | None) -> None:
    """For whoever has to mend the data: also, and above all, when the job is refused."""
    out_dir.mkdir(parents=True, exist_ok=True)
    counted = (
        {} if prepared is None else {"training_data": asdict(prepared.train), "evaluation_data": asdict(prepared.eval)}
    )
    text = json.dumps(report.as_dict(**counted), indent=1, ensure_ascii=False)
    (out_dir / "validation_report.json").write_text(text + "\n", encoding="utf-8")
    saved = ArtifactSaved(path="validation_report.json", kind="validation_report", media_type="application/json")
    sink.emit(saved)


class _Phases:
    """Says where the work is, and hears what the supervisor wants meanwhile."""

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
        """Called for every row: an event when the phase changes and every two seconds, else a sign of life."""
        match self._sink.requested():
            case "pause":
                raise Paused
            case "cancel":
                raise Cancelled
        if name != self._current or time.monotonic() - self._said >= 2:
            self.enter(name, fraction=fraction)
        else:
            self._sink.tick()


def _hardware(spec: PreflightSpec) -> Hardware:
    if spec.hardware is None:
        return read_hardware(spec.node_id, spec.out_dir)
    return json_format.ParseDict(spec.hardware, Hardware())


def _rows(number: int) -> str:
    return f"{number:,} row" if number == 1 else f"{number:,} rows"


def _doubt(resolved: Resolved, prepared: Prepared, report: Report, steps: int) -> None:
    """Warns of what is suspicious about the data, though not refused."""
    train, held_out = prepared.train, prepared.eval
    hyper = resolved.config.hyperparameters
    if left_out := train.num_left_out + held_out.num_left_out:
        message = f"{_rows(left_out)} left out as incomplete; validation_report.json names them and what each lacks."
        resolved.warn("ROWS_LEFT_OUT", message, "Mend them if their number is more than you expected.")
    if mended := sum(count.count for count in report.counts() if count.reason in ("LEADING_TURNS", "TRAILING_TURNS")):
        message = f"{_rows(mended)} cut: turns before the first question, or behind the last answer, are left out."
        resolved.warn("TURNS_LEFT_OUT", message, "validation_report.json names the first of them.")
    if duplicates := train.num_duplicates + held_out.num_duplicates:
        message = f"{_rows(duplicates)} dropped because an earlier row is the same."
        resolved.warn("DUPLICATES_DROPPED", message, "Drop them from the file if that was not meant.")
    if truncated := train.num_truncated + held_out.num_truncated:
        share = truncated / (train.num_examples + held_out.num_examples + train.num_dropped + held_out.num_dropped)
        message = f"{_rows(truncated)} ({share:.0%}) cut at max_length = {hyper.max_length:,}."
        resolved.warn("ROWS_TRUNCATED", message, "A cut answer has no end: raise max_length, or shorten the rows.")
    if dropped := train.num_dropped + held_out.num_dropped:
        message = f"{_rows(dropped)} dropped: cut at max_length = {hyper.max_length:,}, no answer is left."
        resolved.warn("ROWS_DROPPED", message, "Raise max_length, or shorten what stands before the answers.")
    if prepared.num_leaked:
        message = f"{_rows(prepared.num_leaked)} of evaluation_data also trained on: the evaluation will flatter."
        resolved.warn("EVALUATION_LEAKED", message, "Take them out of one of the two.")
    if train.num_examples < _FEW_ROWS:
        message = f"Only {_rows(train.num_examples)} to train on; so few teach a form at most, and overfit soon."
        resolved.warn("FEW_ROWS", message, "Some hundred rows are a usual minimum.")
    if prepared.used_plain_template and prepared.has_chat:
        message = "The base model has no chat template; a plain one with headings and its end-of-text token is used."
        resolved.warn("PLAIN_TEMPLATE", message, "Give chat_template to write conversations in another way.")
    if hyper.warmup_steps is not None and hyper.warmup_steps >= steps:
        message = f"warmup_steps = {hyper.warmup_steps:,} is not below the {steps:,} steps of the job."
        resolved.warn("WARMUP_TOO_LONG", message, "The peak learning rate is never reached: lower warmup_steps.")


def _published(resolved: Resolved) -> ConfigResolved:
    spec = config_to_spec(resolved.config)
    if spec.ByteSize() > _MAX_SPEC_BYTES:
        raise JobError(
            "SPEC_TOO_LARGE",
            f"The configuration is {spec.ByteSize():,} bytes long; {_MAX_SPEC_BYTES:,} are the limit.",
            "Shorten chat_template, system_prompt and evaluation.prompts.",
        )
    return ConfigResolved(resolved_spec=spec, resolutions=resolved.resolutions)


def _identity(model: ModelFiles) -> BaseModelIdentity:
    return BaseModelIdentity(
        id=model.id,
        revision=model.revision,
        weights_sha256=model.weights_sha256,
        num_parameters=model.num_parameters,
        context_length=model.context_length,
        architecture=model.architecture,
    )
