"""Answers many asks at a time: those of one adapter share a batch, and batches take turns.

While a batch is full, a tenant that is not alone in it has further answers in a batch of its own, so that nobody waits
for the end of another tenant's answers.
"""

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
"""Tokens that a batch decodes before the next one takes its turn: to change the adapter takes about as long as a
token."""

_MAX_TOKENIZERS: Final = 16
"""Number of chat templates whose tokenizers stay in memory."""


@dataclass(eq=False)
class _Answer:
    number: int
    tenant: str
    row: Continuation
    tokenizer: Tokenizer
    text: AnswerText
    logprobs_told: int = 0


@dataclass(frozen=True)
class _Key:
    """Identifies a batch: all its answers use one adapter and, if it is of one tenant, belong to that tenant."""

    adapter: Path | None
    tenant: str | None = None
    """None: a batch of all tenants."""


@dataclass(eq=False)
class _Group:
    """Answers that share a batch."""

    batch: Batch
    running: dict[Continuation, _Answer] = field(default_factory=dict)
    waiting: list[_Answer] = field(default_factory=list)

    def has_room(self, row: Continuation) -> bool:
        """Returns True if the row can join in the next turn, with all that wait."""
        waiting = [*(each.row for each in self.waiting), row]
        return num_joining(list(self.running), waiting) == len(waiting)

    def has_others(self, tenant: str) -> bool:
        """Returns True if a tenant is not alone in it."""
        return any(each.tenant != tenant for each in (*self.running.values(), *self.waiting))


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
        self._groups: dict[_Key, _Group] = {}

    def run(self) -> None:
        """Answers for ever."""
        while True:
            self._read_inbox(wait=not self._groups)
            for key in list(self._groups):
                self._take_turn(key)

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
        group = self._group(ask, answer.row)
        group.waiting.append(answer)
        if len(self._groups) > 1 or num_joining(list(group.running), [each.row for each in group.waiting]) == 0:
            self._send(Reply(number=number, queued=True))

    def _group(self, ask: Ask, row: Continuation) -> _Group:
        """Returns the group of a new answer."""
        key = _Key(ask.adapter_dir)
        group = self._groups.get(key)
        if group and group.has_others(ask.tenant) and not group.has_room(row):
            key = _Key(ask.adapter_dir, ask.tenant)
        return self._groups.setdefault(key, _Group(Batch(self._model)))

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
        return _Answer(number, ask.tenant, row, tokenizer, AnswerText(tokenizer, ask.stop))

    def _tokenizer(self, chat_template: str | None) -> Tokenizer:
        if chat_template not in self._tokenizers:
            if len(self._tokenizers) >= _MAX_TOKENIZERS:
                self._tokenizers.pop(next(iter(self._tokenizers)))
            self._tokenizers[chat_template] = Tokenizer(self._input.model.path, chat_template)
        return self._tokenizers[chat_template]

    def _drop(self, number: int) -> None:
        for key, group in list(self._groups.items()):
            group.waiting = [answer for answer in group.waiting if answer.number != number]
            for row, answer in list(group.running.items()):
                if answer.number == number:
                    self._leave(group, row)
            self._close(key, group)

    def _leave(self, group: _Group, row: Continuation) -> None:
        group.batch.leave(row)
        del group.running[row]

    def _close(self, key: _Key, group: _Group) -> None:
        if not group.running and not group.waiting:
            del self._groups[key]

    def _take_turn(self, key: _Key) -> None:
        if key not in self._groups:
            # The last of its callers has left.
            return
        self._adapters.use(key.adapter, busy={each.adapter for each in self._groups})
        torch.set_num_threads(self._cores.threads())
        for _ in range(_STEPS_PER_TURN):
            group = self._groups.get(key)
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
            self._close(key, group)
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
