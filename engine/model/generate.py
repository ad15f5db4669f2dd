"""Greedy generation of answers to prompts."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.model.decode import MAX_ROWS, Batch, Continuation, num_joining

PROMPTS_PER_BATCH: Final = MAX_ROWS
_JOINING: Final = 8
"""Number of prompts that start together: each start copies the caches of all others."""


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    on_tokens: Callable[[list[int]], None] = lambda _: None,
    on_answer: Callable[[int, list[int]], None] = lambda _index, _ids: None,
) -> list[list[int]]:
    """Returns the greedy continuation of each prompt, as token ids without prompt and stop token.

    Of the model's own generation settings only repetition_penalty applies. A prompt has at least one token id. An
    answer ends before the first of `stop_ids`, or after `max_new_tokens`. After each step `on_tokens` receives the
    newest token of each prompt that is being answered. As soon as an answer is complete, `on_answer` receives the index
    of its prompt and its token ids.
    """
    model.eval()
    stops = frozenset(stop_ids)
    rows = {Continuation(prompt, max_new_tokens, stops): index for index, prompt in enumerate(prompts)}
    # The longest first: what exceeds the memory fails at the start.
    waiting = sorted(rows, key=lambda row: len(row.prompt))
    batch = Batch(model)
    while waiting or batch.rows:
        joining = num_joining(batch.rows, reversed(waiting))
        if joining and (not batch.rows or joining >= min(_JOINING, len(waiting))):
            moved = batch.join([waiting.pop() for _ in range(joining)])
        else:
            moved = batch.step()
        moved.sort(key=lambda row: rows[row])
        on_tokens([row.newest for row in moved])
        for row in moved:
            if row.finish_reason:
                on_answer(rows[row], row.ids)
    return [row.ids for row in rows]
