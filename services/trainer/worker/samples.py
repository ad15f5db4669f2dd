"""Answers of the model in training to the caller's prompts, every few steps."""

from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from engine.config.job import JobConfig
from engine.data.tokenizer import Tokenizer
from engine.model.generate import generate
from finetuneflow.v1.stage_result_pb2 import InferenceSample
from services.questions import MAX_TEXT_BYTES, Question, cut, room_for
from services.trainer.worker.events import TrainingCallback
from services.trainer.worker.fsdp import follow, leading
from services.trainer.worker.ranks import Ranks


class SampleCallback(TrainerCallback):
    """Emits an InferenceSample for each question after every `prompt_steps` steps, and after the last planned one.

    Greedy, so no random state changes: a training is the same with and without it.
    """

    def __init__(
        self,
        sink: EventSink,
        phases: Phases,
        config: JobConfig,
        asked: Sequence[Question],
        tokenizer: Tokenizer,
        timing: TrainingCallback,
        sharing: Ranks | None = None,
    ) -> None:
        """`sharing`: the ranks that the weights are divided among, each of which has such a callback; the first one
        answers. None: this process has all weights."""
        self._sharing = sharing
        self._sink, self._phases, self._config = sink, phases, config
        self._asked, self._tokenizer, self._timing = asked, tokenizer, timing

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **_: Any,
    ) -> TrainerControl:
        every = self._config.evaluation.prompt_steps
        if every is None or (state.global_step % every and state.global_step < state.max_steps):
            return control
        with self._timing.left_out():
            if self._sharing is None:
                self._answer(model, state.global_step)
            elif self._sharing.first:
                with leading(model, self._sharing):
                    self._answer(model, state.global_step)
            else:
                follow(model, self._sharing)
        return control

    def _answer(self, model: Any, step: int) -> None:
        for sample in self._samples(model, step):
            self._sink.emit(sample)

    def _samples(self, model: Any, step: int) -> list[InferenceSample]:
        wanted, longest = self._config.evaluation.max_new_tokens, self._config.hyperparameters.max_length
        context = getattr(model.config, "max_position_embeddings", None)
        prompts = [room_for(question, context, wanted, longest) for question in self._asked]
        was_training, cached = model.training, model.config.use_cache
        model.config.use_cache = True
        try:
            answers = generate(
                model,
                prompts,
                max_new_tokens=wanted,
                stop_ids=sorted(self._tokenizer.special_ids),
                on_tokens=lambda _: self._phases.check(),
            )
        finally:
            model.config.use_cache = cached
            model.train(was_training)
        return [
            InferenceSample(
                instruction=cut(question.instruction, MAX_TEXT_BYTES),
                model_output=cut(self._tokenizer.decode(answer).strip(), MAX_TEXT_BYTES),
                output_length=len(answer),
                step=step,
            )
            for question, answer in zip(self._asked, answers, strict=True)
        ]
