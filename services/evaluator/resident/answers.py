"""Answers many asks at a time: those of one adapter share a batch, and adapters take turns."""

import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from engine.data.tokenizer import Tokenizer
from engine.errors import JobError, Violation
from engine.model.decode import Batch, Continuation, num_joining
from services.evaluator.resident.adapters import Adapters
from services.evaluator.resident.answer_text import AnswerText
from services.evaluator.resident.free_cores import FreeCores
from services.evaluator.resident.messages import Ask, Refusal, Reply, ResidentInput
from services.questions import conversation_ids, plain_text_ids

_STEPS_PER_TURN: Final = 8
"""Tokens that an adapter decodes before the next one takes its turn: to change it takes about as long as a token."""

_MAX_TOKENIZERS: Final = 16
"""Number of chat templates whose tokenizers stay in memory."""


@dataclass(eq=False)
class _Answer:
    number: int
    row: Continuation
    tokenizer: Tokenizer
    text: AnswerText
    logprobs_told: int = 0


@dataclass(eq=False)
class _Group:
    """The answers of one adapter."""

    batch: Batch
    running: dict[Continuation, _Answer] = field(default_factory=dict)
    waiting: list[_Answer] = field(default_factory=list)


class Answers:
    """The loop of the resident child."""

    def __init__(
        self, model: Any, child_input: ResidentInput, lines: "queue.Queue[str]", send: Callable[[Reply], None]
    ) -> None:
        """`lines` are those of the control pipe."""
        self._model, self._input = model, child_input
        self._inbox, self._send = lines, send
        self._adapters = Adapters(model)
        self._cores = FreeCores(child_input.threads)
        self._tokenizers: dict[str | None, Tokenizer] = {}
        self._groups: dict[Path | None, _Group] = {}

    def run(self) -> None:
        """Answers for ever."""
        while True:
            self._read_inbox(wait=not self._groups)
            for folder in list(self._groups):
                self._take_turn(folder)

    def _read_inbox(self, *, wait: bool) -> None:
        while wait or not self._inbox.empty():
            word, _, number = self._inbox.get().partition(" ")
            wait = False
            if word == "ask":
                self._accept(int(number))
            elif word == "leave":
                self._drop(int(number))

    def _accept(self, number: int) -> None:
        try:
            ask = Ask.model_validate_json((self._input.asks_dir / f"{number}.json").read_bytes())
        except FileNotFoundError:
            # The caller has left before it was read.
            return
        try:
            answer = self._answer(number, ask)
        except JobError as error:
            self._refuse(number, error)
            return
        group = self._groups.get(ask.adapter_dir)
        if group is None:
            group = self._groups[ask.adapter_dir] = _Group(Batch(self._model))
        group.waiting.append(answer)
        if len(self._groups) > 1 or num_joining(list(group.running), [each.row for each in group.waiting]) == 0:
            self._send(Reply(number=number, queued=True))

    def _answer(self, number: int, ask: Ask) -> _Answer:
        tokenizer = self._tokenizer(ask.chat_template)
        if ask.messages:
            prompt = conversation_ids(ask.messages, ask.system_prompt, tokenizer)
        else:
            prompt = plain_text_ids(ask.text, tokenizer)
        context = self._input.model.context_length or len(prompt) + ask.max_new_tokens
        if len(prompt) >= context:
            raise _too_long(len(prompt), context, self._input.model.id)
        row = Continuation(
            prompt,
            min(ask.max_new_tokens, context - len(prompt)),
            tokenizer.special_ids,
            ask.temperature,
            ask.top_p,
            ask.seed,
            ask.logprobs,
        )
        return _Answer(number, row, tokenizer, AnswerText(tokenizer, ask.stop))

    def _tokenizer(self, chat_template: str | None) -> Tokenizer:
        if chat_template not in self._tokenizers:
            if len(self._tokenizers) >= _MAX_TOKENIZERS:
                self._tokenizers.pop(next(iter(self._tokenizers)))
            self._tokenizers[chat_template] = Tokenizer(self._input.model.path, chat_template)
        return self._tokenizers[chat_template]

    def _drop(self, number: int) -> None:
        for folder, group in list(self._groups.items()):
            group.waiting = [answer for answer in group.waiting if answer.number != number]
            for row, answer in list(group.running.items()):
                if answer.number == number:
                    self._leave(group, row)
            self._close(folder, group)

    def _leave(self, group: _Group, row: Continuation) -> None:
        group.batch.leave(row)
        del group.running[row]

    def _close(self, folder: Path | None, group: _Group) -> None:
        if not group.running and not group.waiting:
            del self._groups[folder]

    def _take_turn(self, folder: Path | None) -> None:
        if folder not in self._groups:
            # The last of its callers has left.
            return
        self._adapters.use(folder, busy=self._groups)
        torch.set_num_threads(self._cores.threads())
        for _ in range(_STEPS_PER_TURN):
            group = self._groups.get(folder)
            if group is None:
                return
            joining = num_joining(list(group.running), [answer.row for answer in group.waiting])
            if joining:
                starting, group.waiting = group.waiting[:joining], group.waiting[joining:]
                group.running |= {answer.row: answer for answer in starting}
                moved = group.batch.join([answer.row for answer in starting])
            else:
                moved = group.batch.step()
            for row in moved:
                self._report(group, row)
            self._close(folder, group)
            self._read_inbox(wait=False)

    def _report(self, group: _Group, row: Continuation) -> None:
        """Sends what a step has added to an answer."""
        answer = group.running[row]
        text = "" if row.finish_reason == "stop" else answer.text.add(row.newest)
        finish = "stop" if answer.text.stopped else row.finish_reason
        if finish:
            text += answer.text.end()
            # The end may complete a stop text that was held back.
            finish = "stop" if answer.text.stopped else finish
        told = [
            (token, answer.tokenizer.decode([token]), logprob)
            for token, logprob in zip(
                row.ids[answer.logprobs_told :], row.logprobs[answer.logprobs_told :], strict=False
            )
        ]
        answer.logprobs_told += len(told)
        first = len(row.ids) <= 1
        if text or told or finish or first:
            reply = Reply(number=answer.number, text=text, logprobs=told, finish_reason=finish)
            if finish:
                reply.prompt_tokens, reply.completion_tokens = len(row.prompt), len(row.ids)
            self._send(reply)
        if finish:
            self._leave(group, row)

    def _refuse(self, number: int, error: JobError) -> None:
        self._send(Reply(number=number, refusal=refusal_of(error)))


def _too_long(num_tokens: int, context: int, model: str) -> JobError:
    message = f"The rendered prompt has {num_tokens:,} tokens; the context of {model} has {context:,}."
    advice = "Shorten the prompt, or begin a new conversation."
    return JobError("PROMPT_TOO_LONG", message, advice, [Violation("prompt", message)])


def refusal_of(error: JobError) -> Refusal:
    """Returns the error as a message."""
    violations = [(each.field, each.description) for each in error.violations]
    return Refusal(reason=error.reason, message=error.message, advice=error.advice, violations=violations)
