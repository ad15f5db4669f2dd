"""The cache of INL models for decoding: a running sum per layer, whose size does not grow with the tokens."""

from typing import Any

import torch
from transformers.cache_utils import Cache


class InlLayerCache:
    """The sum of a layer's contexts over the real tokens of each row, [rows, hidden size]; None before the first."""

    # What transformers asks of each layer of a cache.
    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> None:
        """Replaces the rows by those of these indices."""
        if self.total is not None:
            self.total = self.total.index_select(0, rows.to(self.total.device))

    def append(self, other: "InlLayerCache") -> None:
        """Appends the rows of another layer's cache. Both have read tokens."""
        assert self.total is not None and other.total is not None  # noqa: S101
        self.total = torch.cat([self.total, other.total])

    def get_max_length(self) -> int:
        """Returns -1: the cache itself has no limit."""
        return -1


class InlCache(Cache):
    """The state of an INL model between two calls. Its size does not depend on the number of tokens."""

    def __init__(self, num_layers: int) -> None:
        layers: list[Any] = [InlLayerCache() for _ in range(num_layers)]
        super().__init__(layers=layers)
        self.counts: torch.Tensor | None = None
        """Number of real tokens of each row, int64 [rows]; None before the first."""
        self._seq_length = 0

    def advance(self, counts: torch.Tensor, length: int) -> None:
        """Records that `length` more positions, padding included, were read, and the number of real tokens so far."""
        self.counts = counts
        self._seq_length += length

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Returns the number of positions that were read, padding included."""
        return self._seq_length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Replaces the rows by those of these indices; a row may occur several times."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Replaces the rows by those of these indices."""
        for layer in self._states:
            layer.select(indices)
        if self.counts is not None:
            self.counts = self.counts.index_select(0, indices.to(self.counts.device))

    def keep(self, rows: torch.Tensor, first: int) -> None:
        """Removes all other rows, and the positions before `first`, which are padding in all of them."""
        self.batch_select_indices(rows)
        self._seq_length -= first

    def merge(self, other: "InlCache", width: int) -> None:
        """Appends the rows of another cache; both are padded on the left to `width` positions."""
        assert self.counts is not None and other.counts is not None  # noqa: S101
        for layer, added in zip(self._states, other._states, strict=True):
            layer.append(added)
        self.counts = torch.cat([self.counts, other.counts])
        self._seq_length = width

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row."""
        if self.counts is not None:
            rows = torch.arange(len(self.counts), device=self.counts.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def reset(self) -> None:
        """Forgets all tokens."""
        self.counts, self._seq_length = None, 0
        for layer in self._states:
            layer.total = None

    def crop(self, tokens_to_remove: int) -> None:
        """Raises ValueError: a sum cannot be taken back to an earlier token."""
        raise ValueError("The cache of an INL model cannot be cropped; read the shorter input anew.")

    @property
    def _states(self) -> list[InlLayerCache]:
        layers: Any = self.layers
        return list(layers)
