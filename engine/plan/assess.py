"""Assesses a job from its model, machine and rows: resolves its settings, estimates its needs, adds its warnings."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from engine.catalogue import LocalModel
from engine.config.advice import setting
from engine.config.job import SHUFFLE_BUFFER_TOKENS, JobConfig
from engine.config.schedule import num_warmup_steps
from engine.config.spec_proto import config_to_spec
from engine.config.steps import num_evaluations
from engine.data.prepare import Prepared
from engine.data.sources import UNWRITTEN
from engine.data.statistics import Statistics
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError, Violation
from engine.estimate.advice import JobFacts
from engine.estimate.architecture import Architecture
from engine.estimate.cost import PriceTable
from engine.estimate.disk import GGUF_BITS, Disk, estimate_disk
from engine.estimate.duration import Calibration, Work, evaluation_share
from engine.estimate.estimate_proto import estimate_message
from engine.estimate.machine import Machine
from engine.estimate.memory import Setup
from engine.estimate.recommend import plan
from engine.estimate.saved_activations import Method
from engine.plan.export_checks import check_export
from engine.plan.findings import data_statistics, packing_efficiency, phase_statistics
from engine.plan.intervals import automatic_fields, resolve_intervals
from engine.plan.job_steps import job_steps, passes, training_rows
from engine.plan.resolve import check_disk, resolve
from engine.plan.resolved import Resolved
from finetuneflow.v1.estimate_pb2 import ResourceEstimate
from finetuneflow.v1.event_pb2 import ConfigResolved
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.stage_result_pb2 import BaseModelIdentity, PreflightResult

_FEW_ROWS = 50
_FEWEST_HELD_OUT = 6
"""Fewer rows than this show no difference at a confidence of 95 % (`engine.evaluation.comparison`)."""
_FEW_STEPS = 20
"""Below them a step without effect is more than a twentieth of the training."""
_MAX_SPEC_BYTES = 56 * 1024
"""Limit of the resolved spec, which is sent in one event of at most 64 KiB."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Tokenizer files, which every checkpoint contains."""


@dataclass(frozen=True)
class TargetMachine:
    """The machine that a job is assessed for."""

    hardware: Hardware
    holds_artifacts: bool
    """True if the artifact store is on the disk that training writes to."""
    prices: Path | None = None
    """The operator's price table; None for the built-in one."""
    speeds: Calibration = field(default_factory=Calibration)
    """Speeds measured in earlier trainings."""


@dataclass(frozen=True)
class Assessment:
    """The outcome of a preflight."""

    result: PreflightResult
    facts: JobFacts | None
    """None if no row could be counted."""


def resolve_and_assess(
    resolved: Resolved,
    model: LocalModel,
    architecture: Architecture,
    target: TargetMachine,
    prepared: Prepared | None,
    *,
    missing_bytes: int = 0,
) -> Assessment:
    """Resolves the remaining settings and adds the warnings and refusals that follow from them.

    `prepared` is None if no row could be counted; the longest row is then assumed to be max_length tokens long.
    `missing_bytes` is the size of the model's weights that are not on the machine yet.
    """
    if prepared is not None and not prepared.train.num_examples:
        prepared = None
    hardware = target.hardware
    longest = resolved.config.hyperparameters.max_length if prepared is None else prepared.train.max_tokens
    automatic = automatic_fields(resolved.config)
    resolve(resolved, hardware, architecture, longest, None if prepared is None else training_rows(prepared))
    _check_tokens(resolved, model.path)
    check_export(resolved, model, architecture)
    if prepared is None:
        # Without rows, the memory need is a guess, and would distract from the problem that the rows have.
        resolved.refusals[:] = [error for error in resolved.refusals if error.reason != "INSUFFICIENT_MEMORY"]
    steps = 0
    disk = None
    if prepared is not None:
        if resolved.config.hyperparameters.streaming:
            _describe_stream(resolved, prepared)
        steps = job_steps(resolved.config, prepared)
        resolve_intervals(resolved, steps, _evaluation_share(resolved, architecture, target, prepared, steps))
        _choose_prompt_steps(resolved, steps / max(passes(resolved.config, prepared, steps), 1e-9))
        add_warnings(resolved, prepared, steps)
        disk = _disk(resolved, model, architecture, target, prepared, steps, missing_bytes)
    estimate = _estimate(resolved, architecture, target, longest, prepared, steps, disk)
    result = PreflightResult(
        base_model=_identity(model, architecture),
        training_data=None if prepared is None else data_statistics(prepared.train),
        evaluation_data=data_statistics(prepared.eval) if prepared is not None and prepared.eval.num_examples else None,
        total_steps=steps,
        hardware=hardware,
        warnings=[warning.message for warning in resolved.warnings],
        estimate=estimate,
    )
    if prepared is not None:
        result.phases.extend(phase_statistics(resolved.config, prepared))
        result.num_packed_sequences = prepared.num_packed
        result.packing_efficiency = packing_efficiency(prepared, resolved.config.hyperparameters.max_length)
    facts = None
    if prepared is not None:
        facts = _facts(resolved, architecture, hardware, prepared, steps, estimate, automatic)
    return Assessment(result, facts)


def _describe_stream(resolved: Resolved, prepared: Prepared) -> None:
    hyper = resolved.config.hyperparameters
    if hyper.shuffle_buffer_tokens is None:
        buffer = max(SHUFFLE_BUFFER_TOKENS, hyper.max_length)
        resolved.choose("hyperparameters.shuffle_buffer_tokens", buffer, "a block takes 8 bytes per token")
    elif hyper.shuffle_buffer_tokens < hyper.max_length:
        message = (
            f"shuffle_buffer_tokens = {hyper.shuffle_buffer_tokens:,} is less than a sequence of max_length tokens."
        )
        advice = f"Set it to {hyper.max_length:,} or more, or remove it."
        resolved.refuse("INVALID_CONFIG", "hyperparameters.shuffle_buffer_tokens", message, advice)
    why = f"an epoch has about {prepared.train.num_tokens:,} tokens, estimated from the beginning of each file"
    resolved.resolutions.append(Resolution(field="hyperparameters.streaming", value="true", reason=why))


def _choose_prompt_steps(resolved: Resolved, steps_per_epoch: float) -> None:
    epochs = resolved.config.evaluation.prompt_epochs
    if epochs is not None:
        why = f"{epochs:g} epochs of {steps_per_epoch:.4g} steps"
        resolved.choose("evaluation.prompt_steps", max(round(epochs * steps_per_epoch), 1), why)
        evaluation = resolved.config.evaluation.model_copy(update={"prompt_epochs": None})
        resolved.config = resolved.config.model_copy(update={"evaluation": evaluation})


def _check_tokens(resolved: Resolved, model_dir: Path) -> None:
    """Refuses trainable tokens that are not one token of the tokenizer."""
    asked = resolved.config.lora.trainable_tokens
    if not asked:
        return
    vocabulary = Tokenizer(model_dir).vocabulary
    violations = [
        Violation(f"spec.lora.trainable_tokens[{index}]", f"The tokenizer has no token {token!r}.")
        for index, token in enumerate(asked)
        if token not in vocabulary
    ]
    if violations:
        advice = "Use tokens as tokenizer.json writes them, such as reserved ones; tokens cannot be added."
        resolved.refusals.append(JobError("UNKNOWN_TOKEN", violations[0].description, advice, violations))


def config_resolved_event(resolved: Resolved) -> ConfigResolved:
    """Converts the resolved configuration to its event. Raises JobError("SPEC_TOO_LARGE")."""
    spec = config_to_spec(resolved.config)
    if spec.ByteSize() > _MAX_SPEC_BYTES:
        raise JobError(
            "SPEC_TOO_LARGE",
            f"The configuration has {spec.ByteSize():,} bytes; the limit is {_MAX_SPEC_BYTES:,}.",
            "Shorten chat_template, system_prompt and evaluation.prompts.",
        )
    return ConfigResolved(resolved_spec=spec, resolutions=resolved.resolutions)


def add_warnings(resolved: Resolved, prepared: Prepared, steps: int) -> None:
    """Adds a warning for every suspicious property of the data that does not refuse the job."""
    train, held_out, rows = prepared.train, prepared.eval, prepared.rows
    hyper = resolved.config.hyperparameters
    if rows.incomplete:
        message = f"{_rows_are(rows.incomplete)} incomplete and dropped; the list of row problems says what is missing."
        resolved.warn("ROWS_LEFT_OUT", message, "Correct them if there are more than you expect.", "training_data")
    if rows.unwritten:
        message = (
            f"{_rows_are(rows.unwritten)} dropped: the row template produces no output for {_pronoun(rows.unwritten)}."
        )
        resolved.warn(UNWRITTEN, message, "Correct the template if this is not intended.", "training_data")
    if rows.turns_cut:
        message = (
            f"{_rows_are(rows.turns_cut)} shortened: turns before the first question or after the last answer are "
            "dropped."
        )
        resolved.warn("TURNS_LEFT_OUT", message, "The row problems list the first of them.", "training_data")
    if duplicates := rows.duplicates:
        templated = any(source.template is not None for source in resolved.config.sources())
        what = _count(duplicates, "example") if templated else _rows(duplicates)
        message = f"{what} {_is(duplicates)} dropped as duplicates of earlier ones."
        advice = "If the repetition is intended, raise the weight of the source instead."
        resolved.warn("DUPLICATES_DROPPED", message, advice, "training_data")
    if rows.truncated:
        share = (train.num_truncated + held_out.num_truncated) / (train.num_examples + held_out.num_examples)
        what = f"{_rows(rows.truncated)} ({share:.0%}) {_is(rows.truncated)}"
        message = f"{what} truncated to max_length = {hyper.max_length:,} tokens."
        lost = "The model does not learn where a truncated answer ends"
        if hyper.truncation == "keep_end":
            lost = "A truncated row loses its beginning, which holds its instructions"
        advice = f"{lost}. Raise hyperparameters.max_length or shorten the rows."
        resolved.warn("ROWS_TRUNCATED", message, advice, "hyperparameters.max_length")
    if rows.dropped:
        cut_off, them = rows.cut_off, _pronoun(rows.dropped)
        of_whom = f" of {cut_off:,} of them" if rows.dropped > 1 else ""
        why = f"; max_length = {hyper.max_length:,} cuts off the answer{of_whom}"
        message = f"{_rows_are(rows.dropped)} dropped: no token of {them} would be trained{why * bool(cut_off)}."
        advice = "Raise hyperparameters.max_length, or shorten the text before the answers."
        if not cut_off:
            advice = "Mark a turn of each row as trained if this is not intended."
        resolved.warn("ROWS_DROPPED", message, advice, "hyperparameters.max_length" if cut_off else "training_data")
    if rows.too_long:
        message = f"{_rows_are(rows.too_long)} dropped: longer than max_length = {hyper.max_length:,}."
        advice = "Raise hyperparameters.max_length, or set hyperparameters.truncation to keep_start or keep_end."
        resolved.warn("ROWS_TOO_LONG", message, advice, "hyperparameters.truncation")
    if prepared.num_leaked:
        what = f"{_rows(prepared.num_leaked)} of evaluation_data {_is(prepared.num_leaked)}"
        message = f"{what} also in training_data: eval_loss will be too low."
        resolved.warn("EVALUATION_LEAKED", message, "Remove them from one of the two.", "evaluation_data")
    if train.num_examples < _FEW_ROWS:
        message = f"Only {_rows(train.num_examples)} to train on: the model overfits soon."
        resolved.warn("FEW_ROWS", message, "Add rows; a few hundred is a usual minimum.", "training_data")
    if 0 < held_out.num_examples < _FEWEST_HELD_OUT:
        message = (
            f"Only {_rows(held_out.num_examples)} {_is(held_out.num_examples)} held out: with fewer than "
            f"{_FEWEST_HELD_OUT}, no difference between the base model and the tuned one can be shown."
        )
        advice = "Raise holdout_fraction, or name evaluation_data with more rows."
        resolved.warn("FEW_ROWS", message, advice, "evaluation_data")
    if prepared.used_plain_template and prepared.has_chat:
        message = "The base model has no chat template; a plain one with headings and the end-of-text token is used."
        advice = "Set chat_template to use another one."
        resolved.warn("PLAIN_TEMPLATE", message, advice, "chat_template")
    _check_warm_up(resolved, steps)


def _check_warm_up(resolved: Resolved, steps: int) -> None:
    """Shortens a warm-up that is as long as the training; adds a warning for that and for a step without effect."""
    hyper = resolved.config.hyperparameters
    path = "hyperparameters.warmup_steps"
    warm = num_warmup_steps(hyper, steps)
    if hyper.warmup_steps is not None and hyper.warmup_steps > warm and hyper.lr_scheduler_type != "constant":
        job = f"the job has {_count(steps, 'step')}; the warm-up is shortened to {warm:,}"
        message = f"warmup_steps = {hyper.warmup_steps:,} is too long: {job}."
        resolved.warn("WARMUP_TOO_LONG", message, f"Set {setting(path, steps // 20)}, or train for more steps.", path)
        resolved.choose(path, warm, f"a warm-up must be shorter than the job, which has {_count(steps, 'step')}")
    if warm and steps < _FEW_STEPS:
        message = f"The first of {steps:,} steps changes nothing: a warm-up begins at learning rate 0."
        where = path if hyper.warmup_steps is not None else "hyperparameters.warmup_ratio"
        resolved.warn("STEP_AT_RATE_ZERO", message, f"Set {setting(where, 0)}, or train for more steps.", where)


def _estimate(
    resolved: Resolved,
    architecture: Architecture,
    target: TargetMachine,
    longest: int,
    prepared: Prepared | None,
    steps: int,
    disk: Disk | None,
) -> ResourceEstimate:
    """Estimates the needs of the resolved configuration; every evaluation reads all held-out rows."""
    config = resolved.config
    machine = Machine.for_job(target.hardware, config)
    hyper = config.hyperparameters
    found = plan(architecture, machine, config, _method(resolved), longest)
    work = None
    if prepared is not None:
        evaluations = num_evaluations(steps, hyper)
        work = Work(prepared.train.num_tokens * passes(config, prepared, steps), prepared.eval.num_tokens * evaluations)
    prices = PriceTable.read(target.prices)
    return estimate_message(
        architecture,
        machine,
        *found.unreduced,
        found.verdict,
        work=work,
        calibration=target.speeds,
        prices=prices,
        disk=disk,
        changes=found.adjustments if found.verdict == "tight" else (),
        parallelism_reason=_parallelism_reason(resolved) or found.parallelism_reason,
    )


def _parallelism_reason(resolved: Resolved) -> str:
    reasons = [choice.reason for choice in resolved.resolutions if choice.field == "resources.parallelism"]
    return reasons[-1] if reasons else ""


def _disk(
    resolved: Resolved,
    model: LocalModel,
    architecture: Architecture,
    target: TargetMachine,
    prepared: Prepared,
    steps: int,
    missing_bytes: int,
) -> Disk | None:
    """Estimates the disk space; None if the free space of the machine is not known."""
    if not target.hardware.disk_free_bytes:
        return None
    config = resolved.config
    on_gpu = Machine.for_job(target.hardware, config).on_gpu
    files = [model.path / name for name in _TOKENIZER]
    trained = prepared.num_begun_tokens if config.hyperparameters.streaming else prepared.train.num_tokens
    disk = estimate_disk(
        architecture,
        Setup.of(config, on_gpu=on_gpu, length=max(prepared.train.max_tokens, 1)),
        config,
        total_steps=steps,
        num_tokens=trained + prepared.eval.num_tokens,
        corpus_bytes=prepared.corpus_bytes,
        free_bytes=target.hardware.disk_free_bytes,
        holds_artifacts=target.holds_artifacts,
        tokenizer_bytes=sum(file.stat().st_size for file in files if file.is_file()),
        download_bytes=missing_bytes,
        merged_bytes=_merged_bytes(config, model, architecture, missing_bytes),
        conversion_bytes=_conversion_bytes(config, architecture),
    )
    check_disk(resolved, disk)
    return disk


def _conversion_bytes(config: JobConfig, architecture: Architecture) -> int:
    """Returns the size of the weights in float32 that GGUF files are made of: a model, and for llama.cpp's library a
    file, which may be one of the package; and of the base model, twice, with which adapters in GGUF are verified."""
    export = config.export
    copies = 2 if "gguf_adapter" in export.formats else 0
    if "gguf" in export.formats:
        copies += 1 + (bool(export.quantized_gguf_types) and "f32" not in export.distinct_gguf_types)
    return 4 * architecture.num_parameters * copies


def _merged_bytes(config: JobConfig, model: LocalModel, architecture: Architecture, missing_bytes: int) -> int:
    """Returns the size of the weights of the merged form and of the GGUF files; 0 if the job exports neither."""
    export = config.export
    bits = sum(GGUF_BITS[type_] for type_ in export.distinct_gguf_types) if "gguf" in export.formats else 0.0
    files = math.ceil(architecture.num_parameters * bits / 8)
    if "merged" not in export.formats:
        return files
    if export.dtype:
        return files + architecture.num_parameters * (4 if export.dtype == "float32" else 2)
    return files + (missing_bytes or sum(file.stat().st_size for file in model.path.glob("*.safetensors")))


def _facts(
    resolved: Resolved,
    architecture: Architecture,
    hardware: Hardware,
    prepared: Prepared,
    steps: int,
    estimate: ResourceEstimate,
    automatic: frozenset[str],
) -> JobFacts:
    config = resolved.config.model_copy(update={"method": _method(resolved)})
    return JobFacts(
        config=config,
        architecture=architecture,
        machine=Machine.for_job(hardware, config),
        train=prepared.train,
        evaluation=prepared.eval if prepared.eval.num_examples else Statistics(),
        num_packed=prepared.num_packed,
        num_distinct=prepared.num_distinct,
        total_steps=steps,
        passes=passes(config, prepared, steps),
        seconds=estimate.duration_seconds if estimate.HasField("duration_seconds") else None,
        automatic=automatic,
    )


def _evaluation_share(
    resolved: Resolved, architecture: Architecture, target: TargetMachine, prepared: Prepared, steps: int
) -> float:
    config = resolved.config
    machine = Machine.for_job(target.hardware, config)
    setup = Setup.of(config, on_gpu=machine.on_gpu, length=max(prepared.train.max_tokens, 1))
    trained = prepared.train.num_tokens * passes(config, prepared, steps)
    return evaluation_share(architecture, setup, Work(trained, prepared.eval.num_tokens))


def _method(resolved: Resolved) -> Method:
    method = resolved.config.method
    return "lora" if method == "auto" else method


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _rows_are(number: int) -> str:
    return f"{_rows(number)} {_is(number)}"


def _rows(number: int) -> str:
    return _count(number, "row")


def _pronoun(number: int) -> str:
    return "it" if number == 1 else "them"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _identity(model: LocalModel, architecture: Architecture) -> BaseModelIdentity:
    return BaseModelIdentity(
        id=model.id,
        revision=model.revision,
        weights_sha256=model.weights_sha256,
        # If the weights are not here, the parameters are counted from the headers of their files.
        num_parameters=model.num_parameters or architecture.num_parameters,
        context_length=model.context_length,
        architecture=model.architecture,
    )
