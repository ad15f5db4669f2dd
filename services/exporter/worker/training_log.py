"""`training_log.json` and `training_metadata.json`: the course of the training, and its facts."""

import json
import math
from typing import Any

from services.exporter.worker.child_input import ExportInput


def training_log(child_input: ExportInput) -> str:
    """Returns a JSON object per line: one for each log or evaluation event, in their order, as the trainer writes them.

    Not finite values are null, the only form every JSON reader accepts. Long series were thinned to 10,000 points.
    """
    lines: dict[int, dict[str, Any]] = {}
    for series in child_input.metrics:
        for point in series.points:
            line = lines.setdefault(point.sequence, {"step": point.step, "epoch": point.epoch})
            line[series.name] = point.value if math.isfinite(point.value) else None
    return "".join(json.dumps(lines[sequence], allow_nan=False) + "\n" for sequence in sorted(lines))


def training_metadata(child_input: ExportInput) -> dict[str, Any]:
    """Returns when, how, on what and with what result the model was trained. Unknown values are null."""
    preflight, training, model = child_input.preflight, child_input.training, child_input.model
    hardware, estimate = preflight.hardware, preflight.estimate
    gpus = [gpu.name for gpu in hardware.gpus] if child_input.config.resources.gpus != 0 else []
    estimated = preflight.HasField("estimate")
    return {
        "timestamp": child_input.job.create_time,
        "job_id": child_input.job.id,
        "base_model": model.id,
        "base_model_revision": model.revision,
        "lineage": [each.model_dump() for each in child_input.job.lineage],
        "technique": child_input.config.method,
        "datasets": [dataset.model_dump() for dataset in child_input.job.datasets],
        "num_train_examples": preflight.training_data.num_examples,
        "num_eval_examples": preflight.evaluation_data.num_examples,
        "num_trainable_parameters": training.num_trainable_parameters,
        "total_steps": training.total_steps,
        "best_step": training.best_step,
        "exported_step": child_input.packed_step,
        "early_stopped": training.early_stopped,
        "train_loss": training.train_loss if math.isfinite(training.train_loss) else None,
        "eval_loss": training.best_eval_loss if training.HasField("best_eval_loss") else None,
        "train_runtime_seconds": training.train_runtime_seconds,
        "train_tokens_per_second": training.train_tokens_per_second,
        "estimated_tokens_per_second": estimate.tokens_per_second if estimate.tokens_per_second else None,
        "peak_memory_bytes": training.peak_memory_bytes,
        "peak_gpu_memory_bytes": (
            training.peak_gpu_memory_bytes if training.HasField("peak_gpu_memory_bytes") else None
        ),
        "estimated_memory_bytes": estimate.memory_total_bytes if estimated else None,
        "hardware": {"cpu": hardware.cpu_model, "cpu_cores": hardware.cpu_cores, "gpus": gpus},
        "packages": dict(sorted(hardware.packages.items())),
    }
