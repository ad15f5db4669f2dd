"""Turns the Trainer's progress into events, and the supervisor's requests into the Trainer's control flags."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from chassis.failpoints import failpoint
from engine.config.curriculum import Curriculum
from engine.config.job import Hyperparameters
from engine.perplexity import perplexity
from finetuneflow.v1.event_pb2 import CheckpointSaved, Eval, Log, Restored
from services.trainer.worker.checkpoint import publish
from services.trainer.worker.corpus_rows import CorpusRows
from services.trainer.worker.health import Health
from services.trainer.worker.progress import Progress, Totals, per_second
from services.trainer.worker.ranks import Ranks
from services.trainer.worker.stopwatch import Stopwatch
from services.trainer.worker.training_log import TrainingLog

PHASES = ("loading_model", "preparing", "training", "saving")

_OWN_LOG_FIELDS = frozenset({"loss", "grad_norm", "learning_rate", "epoch", "num_tokens"})
_OWN_EVAL_FIELDS = frozenset({"eval_loss", "eval_runtime", "eval_num_tokens", "epoch"})


class TrainingCallback(TrainerCallback):
    """The only callback of the Trainer. Also decides early stopping and obeys a pause or a cancel.

    Every rank has one, with the totals over all of them; the sink of the first one alone is read.
    """

    def __init__(
        self,
        sink: EventSink,
        phases: Phases,
        hyper: Hyperparameters,
        *,
        ranks: Ranks,
        progress: Progress,
        log: TrainingLog | None,
        stopwatch: Stopwatch,
        peak_tokens_per_second: float | None,
        trainer_dir: Path,
        out_dir: Path,
        curriculum: Curriculum | None,
        restored: Restored | None,
    ) -> None:
        """`peak_tokens_per_second`: tokens a second at which the device would be fully used; None if unknown."""
        self._ranks = ranks
        self.progress = progress
        self.health = Health(sink, hyper, progress)
        self._log, self._stopwatch, self._peak_tokens_per_second = log, stopwatch, peak_tokens_per_second
        self._restored = restored
        self.corpus: CorpusRows | None = None
        """The streamed corpus whose position is part of each checkpoint."""
        self._curriculum = curriculum
        self._phase: int | None = None
        """The curriculum phase that was emitted last."""
        self.attempt = Totals()
        self.paused = False
        self._sink, self._phases = sink, phases
        self._hyper = hyper
        self._trainer_dir, self._out_dir = trainer_dir, out_dir
        self._last_log = Totals()
        self._step = Totals()
        """Totals of this rank in the step that is not complete yet."""
        self._micro_batch = 0
        """Position in its step of the micro-batch that comes next."""
        # Training time is measured from mark to mark; the time between the end of a step that evaluates or saves and
        # the start of the next one does not count.
        self._mark = self._began = time.monotonic()
        self._interrupted = True

    def loading(self) -> None:
        """Begins a step: its rows are fetched now."""
        if self._interrupted:
            self._mark, self._interrupted = time.monotonic(), False
        self._stopwatch.enter("data")

    def forward(self) -> None:
        """Begins the forward pass of a micro-batch."""
        self._stopwatch.enter("forward")

    def computed(self, loss: float, num_rows: int, num_tokens: int, num_padded_tokens: int) -> None:
        """Counts a forward pass, which the host has waited for; `loss` is its share of the step's mean. Begins its
        backward pass, or raises JobError("LOSS_NOT_FINITE")."""
        self._stopwatch.enter("backward")
        self._stopwatch.read()
        self.health.check_loss(loss, self._micro_batch)
        self._micro_batch += 1
        self._step.loss_sum += loss
        self._step.num_rows += num_rows
        self._step.num_tokens += num_tokens
        self._step.num_padded_tokens += num_padded_tokens

    def backward_done(self) -> None:
        """Ends the backward pass of a micro-batch."""
        self._stopwatch.enter("optimizer")

    @contextlib.contextmanager
    def saving(self, *, last: bool) -> Iterator[None]:
        """Ticks while a checkpoint is written, which emits nothing itself for as long as the disk takes."""
        if last:
            self._phases.enter("saving", f"step {self.progress.step}")
        with self._sink.ticking():
            yield

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """Ticks, and leaves the time of its block out of the training time."""
        with self._sink.ticking():
            yield
        self._interrupted = True

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._mark = self._began = time.monotonic()
        # At this point weights, optimizer and schedule are restored from the checkpoint.
        if self._restored:
            self._sink.emit(self._restored)
        return control

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._emit_phase(state.global_step + 1)
        return control

    def _emit_phase(self, step: int) -> None:
        """Emits the curriculum phase of a step if it is another one than before."""
        curriculum = self._curriculum
        if curriculum is None or curriculum.phase_at(step) == self._phase:
            return
        at = self._phase = curriculum.phase_at(step)
        named = f", {curriculum.names[at]}" if curriculum.names[at] else ""
        rows = f"{curriculum.epochs[at]:g} epochs of {curriculum.sequences[at]:,} sequences"
        detail = f"curriculum phase {at + 1} of {len(curriculum.names)}{named}: {rows}, from step {step:,}"
        self._phases.enter("training", detail)

    def _epoch(self, state: TrainerState) -> float:
        """Returns completed epochs. The Trainer counts a whole curriculum as one epoch."""
        if self._curriculum:
            return self._curriculum.epochs_at(state.global_step)
        return state.epoch or 0.0

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        # The next micro-batch of the step.
        self._stopwatch.enter("data")
        self._phases.check()
        return control

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        self._phases.check()
        return control

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: Any = None, **_: Any
    ) -> TrainerControl:
        self._stopwatch.enter(None)
        loss, pause_requested = self._count_step(state)
        self.health.check_skipped(optimizer.step_was_skipped)
        self.health.check_step(loss)
        failpoint(f"training.step-{state.global_step}")
        self._phases.check()
        if state.global_step >= state.max_steps:
            control.should_log = True
        elif pause_requested:
            control.should_save = control.should_training_stop = self.paused = True
        # The best step must be a step that was saved.
        control.should_save = control.should_save or control.should_evaluate
        self._interrupted = control.should_save
        return control

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, float] | None = None,
        **_: Any,
    ) -> TrainerControl:
        if logs is None or "loss" not in logs:
            return control
        progress, window = self.progress, self.attempt.since(self._last_log)
        # Our own mean: when it resumes, the Trainer loses the steps since its last log event.
        progress.logged_loss = progress.window_loss_sum / max(progress.window_steps, 1)
        progress.window_loss_sum, progress.window_steps = 0.0, 0
        self._last_log = replace(self.attempt)
        wall = time.monotonic() - self._began
        parts, steps = self._stopwatch.take(), max(window.steps, 1)
        event = Log(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=self._epoch(state),
            loss=progress.logged_loss,
            learning_rate=logs.get("learning_rate", 0.0),
            grad_norm=logs.get("grad_norm", 0.0),
            tokens_per_second=per_second(window.num_tokens, window.seconds),
            num_tokens=progress.num_tokens,
            eta_seconds=(state.max_steps - state.global_step) * wall / max(self.attempt.steps, 1),
            elapsed_seconds=self.attempt.seconds,
            samples_per_second=per_second(window.num_rows, window.seconds),
            padded_tokens_per_second=per_second(window.num_padded_tokens, window.seconds),
            seconds_per_step=window.seconds / steps,
            **{f"{part}_seconds": seconds / steps for part, seconds in parts.items()},
            extras=_extras(logs, _OWN_LOG_FIELDS, ""),
        )
        if self._peak_tokens_per_second:
            event.mfu = event.tokens_per_second / self._peak_tokens_per_second
        if self._phase is not None:
            event.extras["phase"] = self._phase + 1
        self._report(event)
        self.health.check_log(event.grad_norm, last=state.global_step >= state.max_steps)
        return control

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **_: Any,
    ) -> TrainerControl:
        if metrics is None or "eval_loss" not in metrics:
            return control
        eval_loss, patience = metrics["eval_loss"], self._hyper.early_stopping_patience
        best = self.progress.evaluated(eval_loss, self._hyper.early_stopping_threshold)
        waited = self.progress.evaluations_without_improvement
        event = Eval(
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=self._epoch(state),
            eval_loss=eval_loss,
            perplexity=perplexity(eval_loss),
            eval_runtime_seconds=metrics.get("eval_runtime", 0.0),
            best=best,
            evaluations_without_improvement=waited,
            extras=_extras(metrics, _OWN_EVAL_FIELDS, "eval_"),
        )
        self._report(event)
        self.health.check_evaluation(eval_loss)
        failpoint(f"training.evaluated-{state.global_step}")
        if 0 < patience <= waited and state.global_step < state.max_steps:
            self.progress.early_stopped = control.should_training_stop = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        progress = self.progress
        # Each rank has written its random state.
        self._ranks.wait_for_all()
        if self._log is None:
            return control
        self._log.copy_to(self._trainer_dir / f"checkpoint-{progress.step}")
        if self.corpus is not None:
            self.corpus.save(self._trainer_dir / f"checkpoint-{progress.step}", progress.step)
        event = CheckpointSaved(
            step=progress.step,
            epoch=progress.epoch,
            path=publish(self._trainer_dir, self._out_dir, progress),
            best=progress.best_step == progress.step,
        )
        if progress.eval_loss is not None and progress.eval_step == progress.step:
            event.eval_loss = progress.eval_loss
        self._sink.emit(event)
        failpoint(f"checkpoint.emitted-{progress.step}")
        return control

    def _report(self, event: Log | Eval) -> None:
        self._sink.emit(event)
        if self._log is not None:
            self._log.add(event)

    def _count_step(self, state: TrainerState) -> tuple[float, bool]:
        """Adds the totals of all ranks. Returns the loss of the step, and True if the first rank is to pause."""
        step, asked = self._step, self._ranks.first and self._sink.requested() == "pause"
        loss, *counts, pause = self._ranks.totals(
            [step.loss_sum, step.num_rows, step.num_tokens, step.num_padded_tokens, asked]
        )
        num_rows, num_tokens, num_padded_tokens = map(int, counts)
        self.attempt.num_rows += num_rows
        self.attempt.num_tokens += num_tokens
        self.attempt.num_padded_tokens += num_padded_tokens
        now = time.monotonic()
        self.attempt.seconds += now - self._mark
        self._mark = now
        self.attempt.steps += 1
        self.attempt.loss_sum += loss
        progress = self.progress
        progress.step, progress.epoch = state.global_step, self._epoch(state)
        progress.num_rows += num_rows
        progress.num_tokens += num_tokens
        progress.loss_sum += loss
        progress.window_loss_sum += loss
        progress.window_steps += 1
        self._step, self._micro_batch = Totals(), 0
        return loss, bool(pause)


def _extras(logs: Mapping[str, float], own: frozenset[str], prefix: str) -> dict[str, float]:
    return {
        key.removeprefix(prefix): float(value)
        for key, value in logs.items()
        if key not in own and isinstance(value, int | float)
    }
