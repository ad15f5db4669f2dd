"""The last hidden states of a causal language model, at the positions whose next token is scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def hidden_states(model: Any, predicted: torch.Tensor, *, only: bool) -> Iterator[list[torch.Tensor]]:
    """Collects, while it is open, the hidden states of each forward pass where `predicted` is true: [positions, size].

    `predicted` is [rows, length - 1]: the last position predicts nothing. With `only`, just these pass through the
    head, and the logits are [1, positions, vocabulary]. `model` may have adapters.
    """
    found: list[torch.Tensor] = []

    def select(_module: Any, _arguments: Any, output: Any) -> Any:
        found.append(output.last_hidden_state[:, :-1][predicted])
        if only:
            output.last_hidden_state = found[-1][None]
        return output

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    with plain.base_model.register_forward_hook(select):
        yield found
