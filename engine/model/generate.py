"""Greedy generation of answers to prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

PROMPTS_PER_BATCH = 8
"""On a CPU the time of a step goes into reading the weights, whether for one prompt or for eight."""

_MAX_PENALTY = 10.0


class _TokenListener(StoppingCriteria):
    """Passes the newest token of every prompt to a callback; never stops generation."""

    def __init__(self, on_tokens: Callable[[list[int]], None]) -> None:
        self._on_tokens = on_tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._on_tokens(input_ids[:, -1].tolist())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    on_tokens: Callable[[list[int]], None] = lambda _: None,
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, as token ids without prompt and stop token.

    Of the model's own generation settings only repetition_penalty applies: others would return several answers, need
    code of the hub, or end with an error. A prompt has at least one token id. An answer ends before the first of
    `stop_ids`, or after `max_new_tokens`. After each step `on_tokens` receives the newest token of every prompt of the
    current batch.
    """
    model.eval()
    answers: list[list[int]] = []
    for batch in _batches(prompts):
        width = max(map(len, batch))
        target = next(model.parameters()).device
        ids = torch.full((len(batch), width), stop_ids[0], dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, prompt in enumerate(batch):
            # Padding is on the left, so that the continuation follows its prompt.
            ids[index, width - len(prompt) :] = torch.as_tensor(prompt)
            mask[index, width - len(prompt) :] = 1
        with torch.inference_mode(), _plain_settings(model):
            output = model.generate(
                input_ids=ids.to(target),
                attention_mask=mask.to(target),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                eos_token_id=list(stop_ids),
                pad_token_id=stop_ids[0],
                use_cache=True,
                stopping_criteria=StoppingCriteriaList([_TokenListener(on_tokens)]),
            )
        answers += [_before_stop_token(row[width:].tolist(), stop_ids) for row in output]
    return answers


@contextmanager
def _plain_settings(model: Any) -> Iterator[None]:
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    own = inner.generation_config
    penalty = own.repetition_penalty
    plain = isinstance(penalty, int | float) and 0 < penalty < _MAX_PENALTY
    inner.generation_config = GenerationConfig(repetition_penalty=float(penalty) if plain else 1.0)
    try:
        yield
    finally:
        inner.generation_config = own


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[Sequence[Sequence[int]]]:
    for start in range(0, len(prompts), PROMPTS_PER_BATCH):
        yield prompts[start : start + PROMPTS_PER_BATCH]


def _before_stop_token(ids: list[int], stop_ids: Sequence[int]) -> list[int]:
    for index, token in enumerate(ids):
        if token in stop_ids:
            return ids[:index]
    return ids
