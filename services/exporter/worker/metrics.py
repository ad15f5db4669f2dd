"""`metrics.json` and `training_config.json`: the job's figures and settings under common names."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from engine.perplexity import perplexity
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import Form


@dataclass(frozen=True)
class Point:
    """Loss in nats per trained token after `step` optimizer steps."""

    step: int
    loss: float


def curve(child_input: ExportInput, name: str) -> list[Point]:
    """Returns the points of one series by step. For a step that a later attempt repeated, the last value counts."""
    points = {
        point.step: point.value for series in child_input.metrics if series.name == name for point in series.points
    }
    return [Point(step, points[step]) for step in sorted(points)]


def loss_gap(child_input: ExportInput) -> float | None:
    """Returns by how much the held-out loss at the last step is above the training loss there, in nats per token."""
    training = child_input.training
    return training.final_eval_loss - training.final_train_loss if training.HasField("final_eval_loss") else None


def metrics(child_input: ExportInput, forms: Sequence[Form] = ()) -> dict[str, Any]:
    """Everything measured, in nats per trained token, seconds and rows a second.

    `eval_loss` belongs to `best_step`; `exported_step` is the step that is packed. `evaluation`, measured afterwards in
    fp32, is empty if that is another one.
    `export` has the forms of the model in the package. Not measured, NaN and infinity are null, the only form every
    JSON reader accepts.
    """
    training, evaluation = child_input.training, child_input.evaluation
    eval_loss = training.best_eval_loss if training.HasField("best_eval_loss") else None
    figures = {
        "train_loss": training.train_loss,
        "final_train_loss": training.final_train_loss,
        "eval_loss": eval_loss,
        "final_eval_loss": training.final_eval_loss if training.HasField("final_eval_loss") else None,
        "perplexity": None if eval_loss is None else perplexity(eval_loss),
        "loss_gap": loss_gap(child_input),
        "best_step": training.best_step,
        "exported_step": child_input.packed_step,
        "total_steps": training.total_steps,
        "epochs": training.epochs or None,
        "early_stopped": training.early_stopped,
        "train_runtime": training.train_runtime_seconds,
        "train_samples_per_second": training.train_samples_per_second,
        "train_tokens_per_second": training.train_tokens_per_second,
        "num_trainable_parameters": training.num_trainable_parameters,
        "train_loss_curve": [{"step": point.step, "loss": point.loss} for point in curve(child_input, "loss")],
        "eval_loss_curve": [{"step": point.step, "loss": point.loss} for point in curve(child_input, "eval_loss")],
        "evaluation": {
            "base": _side(evaluation, "base"),
            "tuned": _side(evaluation, "tuned"),
            "num_examples": evaluation.num_examples,
            "num_trained_tokens": evaluation.num_trained_tokens,
            "num_answered": evaluation.num_answered,
            "precision": evaluation.precision,
            "weights": evaluation.weights,
            "metrics": [_plain(metric) for metric in evaluation.metrics],
            "gate": _plain(evaluation.gate) if evaluation.HasField("gate") else None,
            "shown_regression": evaluation.shown_regression or None,
            "classification": _plain(evaluation.classification) if evaluation.HasField("classification") else None,
            "harness": _plain(evaluation.harness) if evaluation.HasField("harness") else None,
            "findings": list(evaluation.findings),
        },
        "export": {"forms": [form.plain() for form in forms]},
        "inference_samples": [
            {
                "instruction": sample.instruction,
                "input": sample.input,
                "expected_output": sample.expected_output,
                "model_output": sample.model_output,
                "output_length": sample.output_length,
                "base_output": sample.base_output,
            }
            for sample in evaluation.samples
        ],
    }
    return {name: _finite(value) for name, value in figures.items()}


def training_config(child_input: ExportInput, adapter_config: dict[str, Any] | None) -> dict[str, Any]:
    """The settings the model was trained with.

    `training`, `lora` and `quantization` carry the names that training libraries are configured with; `config` is
    the job's whole resolved configuration under our own names. `adapter_config` is the packed one, or None for
    method full: it knows which layers really got adapters.
    """
    config, model = child_input.config, child_input.model
    hyperparameters = config.hyperparameters
    evaluated = child_input.training.HasField("best_eval_loss")
    training = {
        "num_epochs": None if config.phases else hyperparameters.num_epochs,
        "max_steps": hyperparameters.max_steps,
        "learning_rate": hyperparameters.learning_rate,
        "per_device_train_batch_size": hyperparameters.per_device_train_batch_size,
        "per_device_eval_batch_size": hyperparameters.per_device_eval_batch_size,
        "gradient_accumulation_steps": hyperparameters.gradient_accumulation_steps,
        "max_seq_length": hyperparameters.max_length,
        "warmup_ratio": hyperparameters.warmup_ratio,
        "warmup_steps": hyperparameters.warmup_steps,
        "weight_decay": hyperparameters.weight_decay,
        "lr_scheduler_type": hyperparameters.lr_scheduler_type,
        "fp16": hyperparameters.precision == "fp16",
        "bf16": hyperparameters.precision == "bf16",
        "gradient_checkpointing": hyperparameters.gradient_checkpointing,
        "optim": hyperparameters.optim,
        "logging_steps": hyperparameters.logging_steps,
        "eval_steps": hyperparameters.eval_steps,
        "save_steps": hyperparameters.save_steps,
        "save_total_limit": hyperparameters.save_total_limit,
        "load_best_model_at_end": evaluated,
        "metric_for_best_model": "eval_loss" if evaluated else None,
        "greater_is_better": False if evaluated else None,
        "early_stopping_patience": hyperparameters.early_stopping_patience,
        "seed": config.seed,
    }
    lora: dict[str, Any] | None = None
    if adapter_config is not None:
        names = ("lora_dropout", "bias", "task_type", "target_modules", "use_rslora", "use_dora", "layers_to_transform")
        # The packed adapter of PiSSA and OLoRA has twice the rank that was trained.
        lora = {
            "r": config.lora.r,
            "lora_alpha": config.lora.lora_alpha,
            "init_lora_weights": config.lora.init_lora_weights,
            "trainable_tokens": config.lora.trainable_tokens,
            **{name: adapter_config.get(name) for name in (*names, "modules_to_save")},
        }
    quantization = None
    if config.method == "qlora":
        quantization = {
            "load_in_4bit": config.quantization.bits == 4,
            "load_in_8bit": config.quantization.bits == 8,
            "bnb_4bit_compute_dtype": config.quantization.bnb_4bit_compute_dtype,
            "bnb_4bit_quant_type": config.quantization.bnb_4bit_quant_type,
            "bnb_4bit_use_double_quant": config.quantization.bnb_4bit_use_double_quant,
        }
    return {
        "job_id": child_input.job.id,
        "create_time": child_input.job.create_time,
        "exported_step": child_input.packed_step,
        "base_model": {"id": model.id, "revision": model.revision, "weights_sha256": model.weights_sha256},
        "method": config.method,
        "datasets": [dataset.model_dump() for dataset in child_input.job.datasets],
        "training": training,
        "lora": lora,
        "quantization": quantization,
        "config": config.model_dump(mode="json"),
        "packages": dict(sorted(child_input.preflight.hardware.packages.items())),
    }


def _side(evaluation: EvaluationResult, side: str) -> dict[str, float | None]:
    loss, ppl = f"{side}_loss", f"{side}_perplexity"
    return {
        "loss": getattr(evaluation, loss) if evaluation.HasField(loss) else None,
        "perplexity": getattr(evaluation, ppl) if evaluation.HasField(ppl) else None,
    }


def _plain(message: Message) -> dict[str, Any]:
    """Returns a message as a table, its enums by their names, what is unset as null."""
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.enum_type is not None:
            prefix = "".join(f"_{letter}" if letter.isupper() else letter for letter in field.enum_type.name)
            names = field.enum_type.values_by_number
            value = names[value].name.removeprefix(f"{prefix.lstrip('_').upper()}_")
        elif field.is_repeated:
            value = [_plain(item) if isinstance(item, Message) else item for item in value]
        elif field.has_presence and not message.HasField(field.name):
            value = None
        elif isinstance(value, Message):
            value = _plain(value)
        found[field.name] = value
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
