"""`report.md`: model, data, settings, results and sample outputs of a job."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine.config.job import JobConfig
from engine.evaluation.verdicts import gap_verdict, is_worse
from engine.perplexity import perplexity
from engine.random_reference import has_random_weights
from engine.serving import Served
from finetuneflow.v1.hardware_pb2 import Hardware
from finetuneflow.v1.stage_result_pb2 import (
    Classification,
    Conclusion,
    EvaluationResult,
    GateDecision,
    HarnessMetric,
    InferenceSample,
    MetricComparison,
)
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import Form, describe
from services.exporter.worker.markdown import escape, row
from services.exporter.worker.metrics import curve, loss_gap
from services.exporter.worker.row_changes import CHANGES, loss_changes
from services.exporter.worker.serving import serving_table

_METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full (every weight)"}
_INITIAL_VALUES = {"pissa": "PiSSA", "olora": "OLoRA", "loftq": "LoftQ"}
NOT_MEASURED = "not measured"
_MOST_CHANGED = 3
"""Number of rows that are shown as better, and as worse."""


def report(
    child_input: ExportInput,
    adapter_config: Mapping[str, Any] | None = None,
    forms: Sequence[Form] = (),
    served: Sequence[Served] = (),
) -> str:
    """The report in Markdown. Every figure was counted or measured by an earlier stage.

    `adapter_config` is that of the checkpoint; None for method full. `forms` are those of the package, `served`
    says what can serve it.
    """
    sections = [
        "# FineTuneFlow Training Report",
        _project(child_input),
        _dataset(child_input),
        _configuration(child_input, adapter_config),
        _results(child_input),
        _samples(list(child_input.evaluation.samples)),
        _comparison(child_input),
        *_harness(child_input.evaluation),
        *_forms(child_input, forms),
        *(["\n\n".join(["## Serving", serving_table(served)])] if served else []),
    ]
    return "\n\n".join(sections) + "\n"


def base_model_report(child_input: ExportInput, forms: Sequence[Form], served: Sequence[Served]) -> str:
    """The report of a base model in Markdown: which model it is, what the package has, and what serves it."""
    model = child_input.model
    project = f"""## Model
- Base Model: {escape(model.id)} (revision {escape(model.revision)})
- SHA-256 of its weights: {model.weights_sha256}
- Parameters: {model.num_parameters:,}
- Licence: {_licence(child_input)}
- Training: none; the weights are those of that model"""
    sections = ["# FineTuneFlow Export Report", project, *_forms(child_input, forms)]
    sections.append("\n\n".join(["## Serving", serving_table(served)]))
    return "\n\n".join(sections) + "\n"


def _licence(child_input: ExportInput) -> str:
    model = child_input.model
    random = "none; its weights are random numbers" if has_random_weights(model.id) else "unknown"
    return escape(model.license) or random


def _forms(child_input: ExportInput, forms: Sequence[Form]) -> list[str]:
    if not forms:
        return []
    lines = [f"- {form.title}: {describe(form)}" for form in forms]
    return ["\n".join(["## Package", *lines, f"- Signature: {signature(child_input)}"])]


def signature(child_input: ExportInput) -> str:
    """Returns who signed the package, as a sentence in Markdown."""
    if child_input.signing is None:
        return "none; the exporter has no signing key."
    return f"`manifest.sig`, certified by the operator's key `{child_input.signing.operator_key}`."


def method_title(config: JobConfig) -> str:
    """Returns the method with what distinguishes its adapters: `QLoRA (4 bits, nf4, DoRA)`."""
    lora, title = config.lora, _METHODS[config.method]
    if config.method == "full":
        return title
    initial = _INITIAL_VALUES.get(lora.init_lora_weights.partition("_")[0])
    more = (
        [_quantization(config)] * (config.method == "qlora") + ["DoRA"] * lora.use_dora + ["rsLoRA"] * lora.use_rslora
    )
    more += [initial] if initial is not None else []
    return f"{title} ({', '.join(more)})" if more else title


def _quantization(config: JobConfig) -> str:
    quantization = config.quantization
    return "8 bits" if quantization.bits == 8 else f"4 bits, {quantization.bnb_4bit_quant_type}"


def _project(child_input: ExportInput) -> str:
    lineage = child_input.job.lineage_text()
    built = f"\n- Model: {lineage}" if lineage else ""
    return f"""## Project
- Name: {escape(child_input.config.display_name)}
- Task: {escape(child_input.config.task)}
- Base Model: {escape(child_input.model.id)} (revision {escape(child_input.model.revision)}){built}"""


def _dataset(child_input: ExportInput) -> str:
    train, held_out = child_input.preflight.training_data, child_input.preflight.evaluation_data
    return f"""## Dataset
- Train examples: {train.num_examples:,}
- Eval examples: {held_out.num_examples:,}
- Avg tokens per example: {train.mean_tokens:.1f}"""


def _configuration(child_input: ExportInput, adapter_config: Mapping[str, Any] | None) -> str:
    config, hyperparameters = child_input.config, child_input.config.hyperparameters
    epochs = f"{hyperparameters.num_epochs:g}"
    if hyperparameters.max_steps is not None:
        epochs = f"limited to {hyperparameters.max_steps:,} steps"
    if config.phases:
        epochs = ", then ".join(
            f"{phase.num_epochs:g} of {escape(phase.display_name) or f'phase {number}'}"
            for number, phase in enumerate(config.phases, 1)
        )
    rank = f"{config.lora.r}, alpha: {config.lora.lora_alpha:g}"
    if adapter_config and adapter_config["r"] != config.lora.r:
        rank += f"; saved as an adapter of rank {adapter_config['r']}, alpha: {adapter_config['lora_alpha']:g}"
    lora = "" if config.method == "full" else f"- LoRA rank: {rank}\n"
    return f"""## Training Configuration
- Method: {method_title(config)}
- Epochs: {epochs}
- Learning rate: {hyperparameters.learning_rate:g}
{lora}- Max sequence length: {hyperparameters.max_length:,}
- GPU: {_gpu(child_input.preflight.hardware, config.resources.gpus)}"""


def _gpu(hardware: Hardware, wanted: int | None) -> str:
    if wanted == 0 or not hardware.gpus:
        return f"none (CPU: {escape(hardware.cpu_model) or 'unknown'}, {hardware.cpu_cores} cores)"
    used = [gpu.name for gpu in hardware.gpus[: wanted or 1]]
    return ", ".join(escape(name) for name in used)


def _results(child_input: ExportInput) -> str:
    training = child_input.training
    eval_loss = ppl = NOT_MEASURED
    if training.HasField("best_eval_loss"):
        precision = child_input.config.hyperparameters.precision
        eval_loss = f"{training.best_eval_loss:.4f} in training ({precision}) at step {training.best_step:,}"
        if child_input.step is None:
            eval_loss += ", the one that is packed"
        if training.HasField("final_eval_loss") and training.best_step != training.total_steps:
            eval_loss += f"; {training.final_eval_loss:.4f} at the last step, {training.total_steps:,}"
        ppl = f"{_number(perplexity(training.best_eval_loss))} (usual targets: below 20 on text, below 10 on code)"
    ending = ", stopped early" if training.early_stopped else ""
    packed = ""
    if child_input.step is not None:
        own = next((point.loss for point in curve(child_input, "eval_loss") if point.step == child_input.step), None)
        loss = "" if own is None else f"; its eval loss in training was {own:.4f}"
        packed = (
            f"\n- Packed: step {child_input.step:,}, not the best one{loss}. The figures below are those of the job"
        )
    return f"""## Results{packed}
- Final train loss: {training.final_train_loss:.4f} (mean over the training {training.train_loss:.4f})
- Final eval loss: {eval_loss}
- Perplexity: {ppl}
- Eval loss above train loss: {_gap(child_input)}
- Training time: {_duration(training.train_runtime_seconds)} ({training.total_steps:,} steps{ending})
- Speed: {_speed(child_input)}
- Peak memory: {_memory(child_input)}"""


def _gap(child_input: ExportInput) -> str:
    gap = loss_gap(child_input)
    if gap is None:
        return NOT_MEASURED
    evaluation = child_input.evaluation
    if is_worse(evaluation.tuned_loss, evaluation.base_loss):
        verdict = "it says nothing here: the tuned model is worse than its base model"
    else:
        verdict = gap_verdict(gap, child_input.training.epochs)
    return f"{gap:.4f} at the last step ({verdict})"


def _speed(child_input: ExportInput) -> str:
    training, estimate = child_input.training, child_input.preflight.estimate
    if not training.train_tokens_per_second:
        return NOT_MEASURED
    measured = f"{training.train_tokens_per_second:,.0f} tokens/s"
    if not estimate.tokens_per_second:
        return measured
    return f"{measured}, {training.train_tokens_per_second / estimate.tokens_per_second:.2f} times the estimate"


def _memory(child_input: ExportInput) -> str:
    """The measured peak where the estimate was about: on the GPU or, without one, in the process."""
    training, estimate = child_input.training, child_input.preflight.estimate
    on_gpu = training.HasField("peak_gpu_memory_bytes")
    peak = training.peak_gpu_memory_bytes if on_gpu else training.peak_memory_bytes
    if not peak:
        return NOT_MEASURED
    # On a CPU it is the sum of all processes; an estimate is that of each.
    processes = 1 if on_gpu else max(estimate.world_size, 1)
    measured = f"{peak / 2**30:.2f} GiB" + (" on the GPU" if on_gpu else "")
    measured += f" in {processes} processes" if processes > 1 else ""
    if not estimate.memory_total_bytes:
        return measured
    estimated, upper = (processes * size / 2**30 for size in (estimate.memory_total_bytes, estimate.memory_upper_bytes))
    return f"{measured} (estimate: {estimated:.2f} GiB, at most {upper:.2f} GiB)"


def _samples(samples: list[InferenceSample]) -> str:
    head = "## Sample Outputs\n"
    if not samples:
        return head + "No samples were generated."
    lines = [row("Instruction", "Expected", "Model Output"), row("---", "---", "---")]
    for sample in samples:
        lines.append(row(_question(sample), escape(sample.expected_output), escape(sample.model_output)))
    return head + "\n".join(lines)


def _comparison(child_input: ExportInput) -> str:
    evaluation = child_input.evaluation
    head = "## Base vs tuned\n"
    if child_input.step is not None:
        best = child_input.training.best_step
        return head + f"Step {child_input.step:,} was not evaluated: the job's evaluation is about step {best:,}."
    if not evaluation.HasField("tuned_loss") and not evaluation.metrics:
        return head + "Loss and perplexity were not measured on held-out rows."
    answered = f"{evaluation.num_answered:,} of them answered"
    if not evaluation.num_answered:
        # Samples may continue such rows.
        answered = "no answer to them was graded (rows of plain text have none)"
    lines = [
        f"Measured in {evaluation.precision or 'fp32'} on {evaluation.num_examples:,} held-out rows "
        f"({evaluation.num_trained_tokens:,} trained tokens), on the {evaluation.weights or 'original'} weights; "
        f"{answered}. Losses in nats per token; a gain is positive if the tuned model is better; intervals "
        "at 95 % confidence, by a paired bootstrap over the rows.",
        "",
        row("Metric", "Base", "Tuned", "Gain", "Interval", "Better / worse", "Conclusion"),
        row(*["---"] * 7),
        *map(_metric, evaluation.metrics or _losses(evaluation)),
    ]
    if evaluation.HasField("quantized_loss"):
        quantized = f"{evaluation.quantized_loss:.4f}"
        lines += ["", f"On the quantized weights that it was trained on, the tuned model's loss is {quantized}."]
    lines += ["", *_gate(evaluation)]
    lines += [f"- {escape(finding, 500)}" for finding in evaluation.findings]
    if evaluation.HasField("classification"):
        lines += ["", *_classification(evaluation.classification)]
    lines += _changes(child_input)
    compared = [sample for sample in evaluation.samples if sample.base_output]
    if compared:
        lines += ["", row("Instruction", "Base output", "Tuned output"), row("---", "---", "---")]
        for sample in compared:
            lines.append(row(_question(sample), escape(sample.base_output), escape(sample.model_output)))
    return head + "\n".join(lines)


def _harness(evaluation: EvaluationResult) -> list[str]:
    """Values of lm-evaluation-harness, if it was asked for."""
    if not evaluation.HasField("harness"):
        return []
    found = evaluation.harness
    rows = f"the first {found.limit:,} rows of each task" if found.HasField("limit") else "all rows of each task"
    template = "with the chat template" if found.chat_template else "without a chat template"
    lines = [
        "## lm-evaluation-harness",
        f"Version {escape(found.version)}, {rows}, prompts {template}; ± is one standard error.",
        "",
        row("Task", "Version", "Metric", "Filter", "Examples in prompt", "Rows", "Base", "Tuned", "Better if"),
        row(*["---"] * 9),
        *map(_harness_metric, found.metrics),
    ]
    return ["\n".join(lines)]


def _harness_metric(metric: HarnessMetric) -> str:
    values = []
    for side in ("base", "tuned"):
        value = _figure(getattr(metric, side)) if metric.HasField(side) else NOT_MEASURED
        stderr = f" ± {_figure(getattr(metric, f'{side}_stderr'))}" if metric.HasField(f"{side}_stderr") else ""
        values.append(value + stderr)
    better = ("higher" if metric.higher_is_better else "lower") if metric.HasField("higher_is_better") else ""
    names = (escape(text) for text in (metric.task, metric.task_version, metric.metric, metric.filter))
    return row(*names, str(metric.num_fewshot), f"{metric.num_rows:,}", *values, better)


def _losses(evaluation: EvaluationResult) -> list[MetricComparison]:
    """Returns the figures of an evaluation that an earlier version made, which compared nothing else."""
    return [
        MetricComparison(
            name=name,
            base=getattr(evaluation, f"base_{name}") if evaluation.HasField("base_loss") else None,
            tuned=getattr(evaluation, f"tuned_{name}"),
        )
        for name in ("loss", "perplexity")
    ]


def _metric(metric: MetricComparison) -> str:
    base, tuned = (
        _figure(getattr(metric, side)) if metric.HasField(side) else NOT_MEASURED for side in ("base", "tuned")
    )
    conclusion = Conclusion.Name(metric.conclusion).removeprefix("CONCLUSION_").lower().replace("_", " ")
    if not metric.HasField("gain"):
        return row(escape(metric.name), base, tuned, "", "", "", "")
    interval = ""
    if metric.HasField("gain_low"):
        interval = f"{metric.gain_low:+.4f} to {metric.gain_high:+.4f}"
    flips = f"{metric.num_improved:,} / {metric.num_worsened:,} of {metric.num_rows:,}"
    return row(escape(metric.name), base, tuned, f"{metric.gain:+.4f}", interval, flips, conclusion)


def decision(evaluation: EvaluationResult) -> str:
    """Returns the decision of the gate as a word; empty if there is none."""
    if not evaluation.HasField("gate"):
        return ""
    return GateDecision.Name(evaluation.gate.decision).removeprefix("GATE_DECISION_")


def _gate(evaluation: EvaluationResult) -> list[str]:
    shown = [f"**Regression shown:** {escape(evaluation.shown_regression, 500)}", ""]
    shown = shown if evaluation.shown_regression else []
    if not evaluation.HasField("gate"):
        return shown
    sentences = [f"- {escape(condition.sentence, 500)}" for condition in evaluation.gate.conditions]
    return [f"Gate: **{decision(evaluation)}**", "", *shown, *sentences]


def _classification(found: Classification) -> list[str]:
    lines = [
        f"Macro F1: base {found.base_macro_f1:.4f}, tuned {found.tuned_macro_f1:.4f}. Answers of the tuned model:",
        "",
    ]
    names = [escape(label, 40) for label in found.labels]
    lines += [row("Expected", *names, "other"), row(*["---"] * (len(names) + 2))]
    width = len(names) + 1
    counts = list(found.tuned_confusion)
    for number, name in enumerate(names):
        lines.append(row(name, *(f"{count:,}" for count in counts[number * width : (number + 1) * width])))
    return lines


def _changes(child_input: ExportInput) -> list[str]:
    """Rows whose loss has changed most, with both answers."""
    changes = sorted(loss_changes(child_input.evaluation_rows), key=lambda change: change.gain)
    if not changes:
        return []
    worse = [change for change in changes[:_MOST_CHANGED] if change.gain < 0]
    better = [change for change in reversed(changes[-_MOST_CHANGED:]) if change.gain > 0]
    lines = ["", f"![Change of the loss of each held-out row]({CHANGES})"]
    for title, found in (("Became worse", worse), ("Became better", better)):
        if found:
            lines += ["", row(f"{title} (row)", "Gain", "Expected", "Base output", "Tuned output"), row(*["---"] * 5)]
        for change in found:
            texts = (escape(text) for text in (change.expected, change.base_answer, change.tuned_answer))
            lines.append(row(str(change.index), f"{change.gain:+.4f}", *texts))
    return lines


def _question(sample: InferenceSample) -> str:
    return escape(f"{sample.instruction} {sample.input}")


def _figure(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) and abs(value) < 1e4 else f"{value:.4g}"


def _number(value: float) -> str:
    return f"{value:,.2f}" if math.isfinite(value) and value < 1e6 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min {rest} s" if hours else f"{minutes} min {rest} s"
