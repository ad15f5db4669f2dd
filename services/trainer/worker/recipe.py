"""Supervised fine-tuning, from input to result."""

import contextlib
import math
import resource
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PrinterCallback, set_seed
from trl.trainer.sft_config import SFTConfig

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink, Paused
from engine.config.advice import setting
from engine.config.curriculum import Curriculum
from engine.config.job import JobConfig
from engine.config.trl_arguments import sft_arguments
from engine.data.shards import read_shards
from engine.data.tokenizer import Tokenizer
from engine.model import load
from engine.model.heap import return_freed_memory
from finetuneflow.v1.event_pb2 import Complete, Restored, Warning
from finetuneflow.v1.stage_result_pb2 import TrainingResult
from services.questions import prompts
from services.trainer.worker.checkpoint import progress_at
from services.trainer.worker.child_input import TrainingInput
from services.trainer.worker.corpus_rows import CORPUS_FILE, CorpusRows
from services.trainer.worker.events import PHASES, TrainingCallback
from services.trainer.worker.extensions import Training, extend, failures_named
from services.trainer.worker.fsdp import FsdpTrainer, loaded_in_turn
from services.trainer.worker.label_smoothing import LabelSmoothing
from services.trainer.worker.loss import Trainer
from services.trainer.worker.methods import (
    keep_trained_weights_float32,
    load_trained_weights,
    loads_checkpoint,
    trainable_model,
)
from services.trainer.worker.order import lengths, with_blank
from services.trainer.worker.progress import Progress, Totals, per_second
from services.trainer.worker.ranks import Ranks
from services.trainer.worker.rows import packed, row_names
from services.trainer.worker.samples import SampleCallback
from services.trainer.worker.stopwatch import Stopwatch
from services.trainer.worker.training_log import TrainingLog
from services.trainer.worker.utilisation import peak_tokens_per_second
from services.trainer.worker.zero import ZeroTrainer, import_deepspeed


def train(child_input: TrainingInput, sink: EventSink) -> TrainingResult:
    """Runs one attempt and returns its result. Raises Paused once a requested pause is saved."""
    config, hyper = child_input.config, child_input.config.hyperparameters
    resume_from = child_input.resume.path if child_input.resume else None
    torch.set_num_threads(max(1, child_input.threads // config.world_size))
    on = "cpu" if config.resources.gpus == 0 else load.device()

    # A pause is obeyed by TrainingCallback, once a checkpoint is saved.
    phases = Phases(sink, PHASES, pausable=False)
    with sink.ticking():
        ranks = Ranks.join(config.world_size, on)
    progress, restored = _restored(child_input, sink)
    start = f" with the adapter {config.start_from}" if config.start_from else ""
    phases.enter("loading_model", f"{child_input.model.id}{start}")
    set_seed(config.seed)
    with sink.ticking():
        model = _model(child_input, on, ranks)
        tokenizer = AutoTokenizer.from_pretrained(child_input.model.path, local_files_only=True)
        return_freed_memory()

    applied = ", ".join(child_input.extensions)
    phases.enter("preparing", f"with the operator's extensions: {applied}" if applied else "")
    trainer_dir = child_input.out_dir / "trainer"
    with sink.ticking():
        train_rows, eval_rows, curriculum = _rows(child_input, sink)
        peak = peak_tokens_per_second(child_input, on, train_rows)
        if ranks.world_size > 1:
            # The sequences of a corpus fill the batches of all ranks, in every epoch.
            train_rows = train_rows if isinstance(train_rows, CorpusRows) else with_blank(train_rows)
            eval_rows = eval_rows and with_blank(eval_rows)
    callback = TrainingCallback(
        sink,
        phases,
        hyper,
        curriculum=curriculum,
        ranks=ranks,
        progress=progress,
        log=TrainingLog(child_input.out_dir, resume_from) if ranks.first else None,
        stopwatch=Stopwatch(on),
        peak_tokens_per_second=peak and peak * ranks.world_size,
        trainer_dir=trainer_dir,
        out_dir=child_input.out_dir,
        restored=restored,
    )
    with sink.ticking():
        arguments = sft_arguments(config, total_steps=child_input.total_steps, output_dir=str(trainer_dir), device=on)
        arguments |= {
            "eval_strategy": "no" if eval_rows is None else "steps",
            # The rows are ids and labels already, cut and packed.
            "dataset_kwargs": {"skip_prepare_dataset": True},
            # Every trained weight takes part in every pass.
            "ddp_find_unused_parameters": False,
        }
        trainer = _trainer(config, on)(
            callback,
            curriculum,
            ranks,
            model=model,
            args=SFTConfig(**arguments),
            train_dataset=train_rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
            callbacks=[callback],
        )
        keep_trained_weights_float32(model)
        callback.health.guessing_loss = math.log(model.config.get_text_config().vocab_size)
        callback.health.rows = lambda *of: row_names(child_input, trainer.rows_of(*of))
        if isinstance(train_rows, CorpusRows):
            callback.health.rows = lambda *of: train_rows.names(trainer.rows_of(*of))
            callback.corpus = train_rows
        trainer.weights_loaded = config.resources.divides_weights or loads_checkpoint(config)
    if hyper.label_smoothing_factor:
        trainer.smoothing = LabelSmoothing(model, hyper.label_smoothing_factor)
    if hyper.attn_implementation not in ("auto", used := model.config._attn_implementation):
        sink.emit(_attention_replaced(child_input.model.id, hyper.attn_implementation, used))
    sharing = ranks if config.resources.divides_weights else None
    if config.evaluation.prompt_steps is not None and (ranks.first or sharing):
        with sink.ticking():
            written = Tokenizer(child_input.model.path, config.chat_template)
            asked = prompts(config, child_input.data_dir, written)
        trainer.add_callback(SampleCallback(sink, phases, config, asked, written, callback, sharing))
    with sink.ticking():
        training = Training(config, model, tokenizer, child_input.out_dir)
        extend(training, child_input.extensions)
    for added in training.callbacks:
        trainer.add_callback(added)
    if training.loss is not None:
        trainer.loss = training.loss
        sink.emit(_loss_replaced(applied))
    # It would repeat every event on stdout, where a worker that runs alone prints its progress.
    trainer.remove_callback(PrinterCallback)

    if progress.early_stopped or progress.step >= child_input.total_steps:
        if restored:
            sink.emit(restored)
    else:
        if sink.requested() == "pause":
            # All trained steps are in a checkpoint already.
            raise Paused
        phases.enter("training", f"{child_input.total_steps - progress.step} steps on {on}")
        with failures_named(child_input.extensions), _closing(train_rows):
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
        if callback.paused:
            raise Paused
    sink.emit(_complete(progress, callback.attempt))
    return _result(child_input, progress, callback.attempt, model, ranks)


def _model(child_input: TrainingInput, on: load.Device, ranks: Ranks) -> Any:
    """Loads the model, or this rank's share of it. A share has the weights of the checkpoint to resume from already."""
    config, files = child_input.config, child_input.model
    resume_from = child_input.resume.path if child_input.resume else None
    start_from = child_input.start.path if child_input.start else None
    if not config.resources.divides_weights:
        return trainable_model(config, files, on, resume_from, start_from)

    def whole() -> Any:
        model = trainable_model(config, files, on, resume_from, start_from, place="cpu")
        keep_trained_weights_float32(model)
        if resume_from and not loads_checkpoint(config):
            load_trained_weights(model, resume_from)
        return model

    return loaded_in_turn(whole, on, ranks)


def _trainer(config: JobConfig, on: load.Device) -> Callable[..., Trainer]:
    """Returns what makes the Trainer for the way in which the ranks share the training."""
    if config.resources.divides_weights:
        return FsdpTrainer
    if not config.resources.uses_deepspeed:
        return Trainer
    computes_in = torch.bfloat16 if config.hyperparameters.precision == "bf16" else None
    return partial(ZeroTrainer, wrapper=import_deepspeed(on), computes_in=computes_in)


@contextlib.contextmanager
def _closing(rows: Dataset) -> Iterator[None]:
    """Ends the process behind streamed rows, however the block ends."""
    try:
        yield
    finally:
        if isinstance(rows, CorpusRows):
            rows.close()


def _rows(child_input: TrainingInput, sink: EventSink) -> tuple[Dataset, Dataset | None, Curriculum | None]:
    """Loads training rows (streamed, or packed if configured), held-out rows or None, and the curriculum if there are
    phases."""
    curriculum = None
    if child_input.config.hyperparameters.streaming:
        train_rows: Dataset = CorpusRows(child_input, sink)
    else:
        train_rows = read_shards(child_input.data_dir / "train")
        parts = packed(child_input, train_rows)
        train_rows = concatenate_datasets(parts)
        if child_input.config.phases:
            curriculum = Curriculum.of(child_input.config, [len(part) for part in parts])
    if not (child_input.data_dir / "eval").is_dir():
        return train_rows, None, curriculum
    eval_rows = read_shards(child_input.data_dir / "eval")
    # Every token weighs the same in the evaluation loss, so the order is free: rows of one length need no padding.
    counted = lengths(eval_rows)
    return train_rows, eval_rows.select(sorted(range(len(counted)), key=lambda i: -counted[i])), curriculum


def _restored(child_input: TrainingInput, sink: EventSink) -> tuple[Progress, Restored | None]:
    """Reads the totals to continue from. Warns of newer checkpoints that cannot be used."""
    resume, world_size = child_input.resume, child_input.config.world_size
    more = [CORPUS_FILE] if child_input.config.hyperparameters.streaming else []
    divided = child_input.config.resources.divides_optimizer
    progress = progress_at(resume.path, world_size, *more, divided=divided) if resume else Progress()
    where = f"from step {progress.step}" if child_input.resume else "from the beginning"
    for checkpoint in child_input.unusable_checkpoints:
        sink.emit(
            Warning(
                reason="CHECKPOINT_UNUSABLE",
                message=f"The checkpoint of step {checkpoint.step} cannot be used; training continues {where}: "
                f"{checkpoint.problem}",
                advice="The steps since then are repeated. Ask the operator to check the artifact store.",
            )
        )
    if not child_input.resume:
        return progress, None
    manifest = child_input.resume.manifest_sha256
    return progress, Restored(checkpoint_step=progress.step, manifest_sha256=manifest, first_step=progress.step + 1)


def _attention_replaced(model: str, chosen: str, used: str) -> Warning:
    message = f"{model} does not support {chosen} attention; it uses {used}."
    advice = f"Set {setting('hyperparameters.attn_implementation', used)} to have no warning."
    return Warning(reason="ATTENTION_REPLACED", message=message, advice=advice)


def _loss_replaced(extensions: str) -> Warning:
    message = f"The operator's extensions ({extensions}) replace the loss of training, label smoothing included."
    return Warning(reason="LOSS_REPLACED", message=message, advice="Compare such jobs by their held-out loss.")


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


def _result(
    child_input: TrainingInput, progress: Progress, attempt: Totals, model: Any, ranks: Ranks
) -> TrainingResult:
    seconds = child_input.prior_runtime_seconds + attempt.seconds
    result = TrainingResult(
        total_steps=progress.step,
        epochs=progress.epoch,
        train_loss=progress.loss_sum / max(progress.step, 1),
        final_train_loss=progress.logged_loss,
        best_step=progress.best_step or progress.step,
        train_runtime_seconds=seconds,
        train_samples_per_second=per_second(progress.num_rows, seconds),
        train_tokens_per_second=per_second(progress.num_tokens, seconds),
        early_stopped=progress.early_stopped,
        num_trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        peak_memory_bytes=int(sum(ranks.totals([_peak_memory()]))),
    )
    if torch.cuda.is_initialized():
        result.peak_gpu_memory_bytes = int(ranks.highest(torch.cuda.max_memory_reserved()))
    # Written by this attempt or, if none was better since, by an earlier one, where the supervisor finds it.
    result.best_checkpoint_path = f"checkpoints/step-{result.best_step}"
    if progress.best_eval_loss is not None:
        result.best_eval_loss = progress.best_eval_loss
    if progress.eval_loss is not None and progress.eval_step == progress.step:
        result.final_eval_loss = progress.eval_loss
    return result


def _peak_memory() -> int:
    """Returns the peak resident memory of this process, in bytes."""
    # Confinement hides it from a rank, which the child has started; and systems other than Linux have none.
    with contextlib.suppress(OSError):
        # ru_maxrss would include memory of the parent from before it started this program.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
