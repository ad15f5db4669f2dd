"""Supervised fine-tuning, from spec to result."""

import resource
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PrinterCallback, set_seed
from trl.data_utils import pack_dataset
from trl.trainer.sft_config import SFTConfig

from chassis.child.pipe import EventSink, Paused
from engine.config.curriculum import Curriculum
from engine.config.trl_arguments import sft_arguments
from engine.data.prepare import Prepared
from engine.data.shards import read_shards
from engine.model import load
from finetuneflow.v1.event_pb2 import Complete, Restored, Warning
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from services.trainer.worker.checkpoint import progress_at
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.events import TrainingCallback, phase
from services.trainer.worker.loss import Trainer
from services.trainer.worker.methods import keep_trained_weights_float32, trainable_model
from services.trainer.worker.order import lengths
from services.trainer.worker.progress import Progress, Totals, per_second


def train(spec: TrainingInput, sink: EventSink) -> TrainingResult:
    """Runs one attempt to its end and says how it went. Raises Paused once a requested pause is saved."""
    config, hyper = spec.config, spec.config.hyperparameters
    torch.set_num_threads(spec.threads)
    on = "cpu" if config.resources.gpus == 0 else load.device()

    progress, restored = _restored(spec, sink)
    sink.emit(phase("loading_model", spec.model.id))
    set_seed(config.seed)
    with sink.ticking():
        model = trainable_model(config, spec.model, on)
        tokenizer = AutoTokenizer.from_pretrained(spec.model.path, local_files_only=True)

    sink.emit(phase("preparing"))
    trainer_dir = spec.out_dir / "trainer"
    with sink.ticking():
        train_rows, eval_rows, curriculum = _rows(spec)
    reporter = TrainingCallback(
        sink,
        hyper,
        curriculum=curriculum,
        progress=progress,
        trainer_dir=trainer_dir,
        out_dir=spec.out_dir,
        restored=restored,
    )
    with sink.ticking():
        arguments = sft_arguments(config, total_steps=spec.total_steps, output_dir=str(trainer_dir), device=on)
        arguments |= {
            "eval_strategy": "no" if eval_rows is None else "steps",
            # The rows are ids and labels already, cut and packed.
            "dataset_kwargs": {"skip_prepare_dataset": True},
        }
        trainer = Trainer(
            reporter,
            curriculum,
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            callbacks=[reporter],
        )
        keep_trained_weights_float32(model)
    # It would repeat every event on stdout, which is for readable progress when the worker runs alone.
    trainer.remove_callback(PrinterCallback)

    if progress.early_stopped or progress.step >= spec.total_steps:
        if restored:
            sink.emit(restored)
    else:
        if sink.requested() == "pause":
            # Nothing was trained yet that is not in a checkpoint.
            raise Paused
        sink.emit(phase("training", f"{spec.total_steps - progress.step} steps on {on}"))
        trainer.train(resume_from_checkpoint=str(spec.resume.path) if spec.resume else None)
        if reporter.paused:
            raise Paused
    sink.emit(_complete(progress, reporter.attempt))
    return _result(spec, progress, reporter.attempt, model)


def _rows(spec: TrainingInput) -> tuple[Dataset, Dataset | None, Curriculum | None]:
    """Training rows (or packs of them), held-out rows, and how the phases follow each other; None where nothing is held
    out, and where there are no phases."""
    hyper = spec.config.hyperparameters
    train_rows = read_shards(spec.data_dir / "train")
    parts = [train_rows]
    if spec.config.phases:
        counts = [phase.train.num_examples for phase in Prepared.read(spec.data_dir).phases]
        parts = [train_rows.select(range(sum(counts[:i]), sum(counts[: i + 1]))) for i in range(len(counts))]
    if hyper.packing:
        parts = [pack_dataset(part, hyper.max_length, "bfd", {"keep_in_memory": True}) for part in parts]
    train_rows = concatenate_datasets(parts)
    curriculum = Curriculum.of(spec.config, [len(part) for part in parts]) if spec.config.phases else None
    if not (spec.data_dir / "eval").is_dir():
        return train_rows, None, curriculum
    eval_rows = read_shards(spec.data_dir / "eval")
    # Every token weighs the same in the evaluation loss, so the order is free: rows of one length need no padding.
    counted = lengths(eval_rows)
    return train_rows, eval_rows.select(sorted(range(len(counted)), key=lambda i: -counted[i])), curriculum


def _restored(spec: TrainingInput, sink: EventSink) -> tuple[Progress, Restored | None]:
    """Where the training goes on from. Says which newer checkpoints had to be passed over."""
    progress = progress_at(spec.resume.path) if spec.resume else Progress()
    where = f"from step {progress.step}" if spec.resume else "from the beginning"
    for checkpoint in spec.unusable_checkpoints:
        sink.emit(
            Warning(
                reason="CHECKPOINT_UNUSABLE",
                message=f"The checkpoint of step {checkpoint.step} cannot be used, training goes on {where}: "
                f"{checkpoint.problem}",
                advice="Nothing is lost but time; have the operator look at the artifact store.",
            )
        )
    if not spec.resume:
        return progress, None
    manifest = spec.resume.manifest_sha256
    return progress, Restored(checkpoint_step=progress.step, manifest_sha256=manifest, first_step=progress.step + 1)


def _complete(progress: Progress, attempt: Totals) -> Complete:
    event = Complete(
        total_steps=progress.step,
        best_step=progress.best_step or progress.step,
        early_stopped=progress.early_stopped,
        train_loss=attempt.loss_sum / max(attempt.steps, 1),
        train_runtime_seconds=attempt.seconds,
        train_samples_per_second=per_second(attempt.num_rows, attempt.seconds),
    )
    if progress.best_eval_loss is not None:
        event.best_metric = progress.best_eval_loss
    return event


def _result(spec: TrainingInput, progress: Progress, attempt: Totals, model: Any) -> TrainingResult:
    seconds = spec.prior_runtime_seconds + attempt.seconds
    result = TrainingResult(
        total_steps=progress.step,
        train_loss=progress.loss_sum / max(progress.step, 1),
        final_train_loss=progress.logged_loss,
        best_step=progress.best_step or progress.step,
        train_runtime_seconds=seconds,
        train_samples_per_second=per_second(progress.num_rows, seconds),
        train_tokens_per_second=per_second(progress.num_tokens, seconds),
        early_stopped=progress.early_stopped,
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        peak_memory_bytes=_peak_memory(),
    )
    # Written by this attempt or, when nothing was better since, by an earlier one: the supervisor finds it.
    result.best_checkpoint_path = f"checkpoints/step-{result.best_step}"
    if progress.best_eval_loss is not None:
        result.best_eval_loss = progress.best_eval_loss
    if progress.eval_loss is not None and progress.eval_step == progress.step:
        result.final_eval_loss = progress.eval_loss
    return result


def _peak_memory() -> int:
    """Highest resident memory of this process, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss would include what the parent used before it started this program.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
