"""Decodes several continuations at a time with one model; each may start and end while others are being decoded."""

import inspect
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from peft import PeftModel
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from engine.inl.cache import InlCache
from engine.inl.model import InlForCausalLM

FinishReason = Literal["", "stop", "length"]

MAX_ROWS: Final = 32
"""Maximum number of continuations in a batch. On a CPU the time of a step goes into reading the weights, whether for
one or for many."""
_CACHED_TOKENS: Final = 16 * 1024
"""Maximum number of tokens, with padding, in the cache of a batch; a longer continuation is alone."""
_PREFILL_TOKENS: Final = 4096
"""Maximum number of tokens, with padding, of the prompts that are read in one pass: the activations of all of them are
in memory together. A longer prompt is read alone."""
_ROOM: Final = 64
"""Number of tokens by which a cache grows when it is full."""
_KEPT_SHARE: Final = 0.75
"""Share of a batch that must be running; else the finished ones are removed, which copies the caches of all others."""
_MAX_PENALTY: Final = 10.0


@dataclass(eq=False)
class Continuation:
    """A prompt, how it is continued, and the tokens that were decoded so far."""

    prompt: Sequence[int]
    """Token ids, at least one."""
    max_new_tokens: int
    """At least 1."""
    stop_ids: Collection[int]
    """The continuation ends before the first of these."""
    temperature: float = 0.0
    """0: greedy decoding."""
    top_p: float = 1.0
    """Samples from the most probable tokens whose probabilities add up to this. In (0, 1]."""
    seed: int = 0
    """The same seed samples the same tokens, whatever else is in the batch, as far as rounding allows."""
    with_logprobs: bool = False
    ids: list[int] = field(default_factory=list)
    """Decoded token ids, without the stop token."""
    logprobs: list[float] = field(default_factory=list)
    """For each of `ids` the natural logarithm of the model's probability, at temperature 1 and without top_p and
    repetition penalty."""
    newest: int = -1
    """The id that was decoded last, also if it is a stop token; -1 before the first."""
    finish_reason: FinishReason = ""
    """`stop`: at a stop token. `length`: max_new_tokens is reached. Empty: not finished."""
    _generator: torch.Generator | None = field(default=None, init=False, repr=False)

    def append(self, token: int, logprob: float | None) -> None:
        """Adds a decoded token, or finishes at a stop token."""
        self.newest = token
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        if logprob is not None:
            self.logprobs.append(logprob)
        if len(self.ids) >= self.max_new_tokens:
            self.finish_reason = "length"

    def sample(self, scores: torch.Tensor) -> int:
        """Returns a token id sampled from the scores of all tokens, a vector."""
        if self._generator is None:
            # On the CPU a seed means the same for every device.
            self._generator = torch.Generator().manual_seed(self.seed)
        scores = torch.nan_to_num(scores.cpu())
        probabilities = ((scores - scores.max()) / self.temperature).softmax(-1)
        ordered, order = probabilities.sort(descending=True, stable=True)
        if self.top_p < 1:
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0
        return int(order[torch.multinomial(ordered, 1, generator=self._generator)])


class Batch:
    """Continuations that are decoded together: each step decodes one token of each.

    The prompts of new ones are read separately, then they join the others; finished ones are removed once they are a
    quarter of the batch, so a short answer costs little after its end. Of the model's own generation settings only
    repetition_penalty applies: others would return several answers, need code of the hub, or end with an error.

    Continuations are padded on the left to one length, which needs a model that takes position ids and whose cache
    holds keys and values of all tokens, or an INL model, whose cache holds a sum and a count for each continuation.
    Other models are stepped one continuation after another, each with a cache of its own: those with sliding or chunked
    attention (Mistral 7B v0.1, Gemma 2 and 3, Phi-3 mini), with recurrent states (Mamba, Jamba, Falcon-H1, LFM2),
    without position ids (Bloom, MPT), and those whose rotary embedding depends on the longest sequence (rope types
    `dynamic` and `longrope`).
    """

    def __init__(self, model: Any) -> None:
        """`model` is a causal language model in evaluation mode. Its adapter must not be changed during a step."""
        self._model = model
        self._padded = can_pad(model)
        self._penalty = _repetition_penalty(model)
        self._groups: list[_Padded | _Single] = []

    @property
    def rows(self) -> list[Continuation]:
        """The continuations that are not finished."""
        return [row for group in self._groups for row in group.rows if not row.finish_reason]

    @torch.inference_mode()
    def join(self, rows: Sequence[Continuation]) -> list[Continuation]:
        """Reads the prompts of new continuations and decodes the first token of each. Returns `rows`."""
        for group in self._read(rows):
            self._decode(group)
            if not group.rows:
                continue
            first = self._groups[0] if self._groups else None
            if isinstance(group, _Padded) and isinstance(first, _Padded):
                first.merge(group)
            else:
                self._groups.append(group)
        return list(rows)

    @torch.inference_mode()
    def step(self) -> list[Continuation]:
        """Decodes one token of each continuation. Returns them all; those that are finished now are not in `rows`."""
        rows = self.rows
        for group in self._groups:
            self._decode(group)
        self._groups = [group for group in self._groups if group.rows]
        return rows

    @torch.inference_mode()
    def leave(self, row: Continuation) -> None:
        """Removes a continuation that is no longer wanted. Does nothing if it has left."""
        for group in self._groups:
            if row in group.rows:
                group.keep([index for index, other in enumerate(group.rows) if other is not row])
        self._groups = [group for group in self._groups if group.rows]

    def _read(self, rows: Sequence[Continuation]) -> Iterator["_Padded | _Single"]:
        if not self._padded:
            yield from (_Single(self._model, row) for row in rows)
            return
        # Neighbours of similar length need little padding.
        for some in _passes(sorted(rows, key=lambda row: len(row.prompt))):
            yield _Padded(self._model, some)

    def _decode(self, group: "_Padded | _Single") -> None:
        logits = group.logits().float()
        tokens, logprobs = self._choose(group.rows, logits)
        for row, token, logprob in zip(group.rows, tokens, logprobs, strict=True):
            if not row.finish_reason:
                row.append(token, logprob)
        running = [index for index, row in enumerate(group.rows) if not row.finish_reason]
        if len(running) <= _KEPT_SHARE * len(group.rows):
            group.keep(running)

    def _choose(self, rows: Sequence[Continuation], logits: torch.Tensor) -> tuple[list[int], list[float | None]]:
        scores = self._penalised(rows, logits)
        tokens: list[int] = scores.argmax(-1).tolist()
        logprobs: list[float | None] = [None] * len(rows)
        for index, row in enumerate(rows):
            if row.finish_reason:
                continue
            if row.temperature > 0:
                tokens[index] = row.sample(scores[index])
            if row.with_logprobs:
                logprobs[index] = float(logits[index].log_softmax(-1)[tokens[index]])
        return tokens, logprobs

    def _penalised(self, rows: Sequence[Continuation], logits: torch.Tensor) -> torch.Tensor:
        """Makes the tokens of prompt and continuation less probable, as transformers does for one prompt."""
        if self._penalty == 1.0:
            return logits
        scores = logits.clone()
        for index, row in enumerate(rows):
            seen = torch.tensor(sorted({*row.prompt, *row.ids}), device=logits.device)
            held = logits[index, seen]
            scores[index, seen] = torch.where(held < 0, held * self._penalty, held / self._penalty)
        return scores


def num_joining(running: Sequence[Continuation], waiting: Iterable[Continuation]) -> int:
    """Returns how many of the waiting, in their order, may join those that run."""
    sizes = [len(row.prompt) + row.max_new_tokens for row in running]
    for row in waiting:
        sizes.append(len(row.prompt) + row.max_new_tokens)
        if len(sizes) > MAX_ROWS or (len(sizes) > 1 and len(sizes) * max(sizes) > _CACHED_TOKENS):
            return len(sizes) - 1 - len(running)
    return len(sizes) - len(running)


def can_pad(model: Any) -> bool:
    """Returns True if continuations of different lengths can be decoded together; see `Batch`."""
    inner = _inner(model)
    if isinstance(inner, InlForCausalLM):
        return True
    accepted = inspect.signature(inner.forward).parameters
    if not {"attention_mask", "position_ids", "past_key_values"} <= accepted.keys():
        return False
    if getattr(inner, "_is_stateful", False) or not inner._supports_default_dynamic_cache():
        return False
    config = inner.config.get_text_config(decoder=True)
    if _rope_types(getattr(config, "rope_parameters", None)) & {"dynamic", "longrope"}:
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def _rope_types(parameters: Any) -> set[str]:
    # One set of parameters, or one for each type of layer.
    if not isinstance(parameters, dict):
        return set()
    if "rope_type" in parameters:
        return {str(parameters["rope_type"])}
    return {kind for inner in parameters.values() for kind in _rope_types(inner)}


def _inner(model: Any) -> Any:
    return model.get_base_model() if isinstance(model, PeftModel) else model


def _repetition_penalty(model: Any) -> float:
    penalty = _inner(model).generation_config.repetition_penalty
    plain = isinstance(penalty, int | float) and 0 < penalty < _MAX_PENALTY
    return float(penalty) if plain else 1.0


def _passes(rows: Iterable[Continuation]) -> Iterator[list[Continuation]]:
    """Splits rows, sorted by the lengths of their prompts, into those that are read in one pass."""
    some: list[Continuation] = []
    for row in rows:
        if some and (len(some) + 1) * len(row.prompt) > _PREFILL_TOKENS:
            yield some
            some = []
        some.append(row)
    if some:
        yield some


class _Padded:
    """Continuations with one cache, padded on the left."""

    def __init__(self, model: Any, rows: Sequence[Continuation]) -> None:
        self.rows = list(rows)
        self._model = model
        self._device = next(model.parameters()).device
        inner = _inner(model)
        # Both kinds keep rows and merge with the cache of another group.
        self._cache: Any = InlCache(len(inner.model.layers)) if isinstance(inner, InlForCausalLM) else _RoomyCache()
        width = max(len(row.prompt) for row in rows)
        self._mask = torch.zeros((len(rows), width), dtype=torch.long)
        for index, row in enumerate(rows):
            self._mask[index, width - len(row.prompt) :] = 1
        self._mask = self._mask.to(self._device)
        accepted = inspect.signature(inner.forward).parameters
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def logits(self) -> torch.Tensor:
        """Returns the scores of the next token of each row, [rows, vocabulary]."""
        if self._cache.get_seq_length() == 0:
            ids = torch.zeros_like(self._mask)
            for index, row in enumerate(self.rows):
                ids[index, -len(row.prompt) :] = torch.as_tensor(row.prompt)
            positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        else:
            ids = torch.tensor([[row.newest] for row in self.rows], device=self._device)
            positions = self._mask.sum(-1, keepdim=True)
            self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=-1)
        output = self._model(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            return_dict=True,
            **self._only_last,
        )
        last: torch.Tensor = output.logits[:, -1]
        return last

    def keep(self, indices: Sequence[int]) -> None:
        """Removes all other rows, and the padding that no row needs any more."""
        self.rows = [self.rows[index] for index in indices]
        if not self.rows:
            return
        chosen = torch.tensor(indices, device=self._device)
        mask = self._mask[chosen]
        first = int(mask.any(0).long().argmax())
        self._mask = mask[:, first:]
        self._cache.keep(chosen, first)

    def merge(self, other: "_Padded") -> None:
        """Takes over the rows of another group."""
        self.rows += other.rows
        width = max(self._mask.shape[1], other._mask.shape[1])
        self._mask = torch.cat([_widened(mask, width, dim=1) for mask in (self._mask, other._mask)])
        self._cache.merge(other._cache, width)


class _RoomyCache(Cache):
    """Keys and values of all tokens, in all layers."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=_RoomyLayer)

    def keep(self, rows: torch.Tensor, first: int) -> None:
        """Removes all other rows, and the positions before `first`, which are padding in all of them."""
        for layer in self._roomy_layers:
            layer.keep(rows, first)

    def merge(self, other: "_RoomyCache", width: int) -> None:
        """Appends the rows of another cache; both are padded on the left to `width` positions."""
        for layer, added in zip(self._roomy_layers, other._roomy_layers, strict=True):
            layer.merge(added, width)

    @property
    def _roomy_layers(self) -> "list[_RoomyLayer]":
        layers: Any = self.layers
        return list(layers)


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer, with room for the next tokens. The layer of transformers copies all of them for
    each token."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self._roomy_keys = self._roomy_values = torch.empty(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the keys and values of new tokens. Returns those of all tokens."""
        if not self.is_initialized:
            self._hold(key_states[..., :0, :], value_states[..., :0, :])
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        self._roomy_keys, self.keys = _appended(self._roomy_keys, self._held_keys, key_states)
        self._roomy_values, self.values = _appended(self._roomy_values, self._held_values, value_states)
        return self.keys, self.values

    def keep(self, rows: torch.Tensor, first: int) -> None:
        """Removes all other rows, and the tokens before `first`."""
        self._hold(self._held_keys[rows, :, first:], self._held_values[rows, :, first:])

    def merge(self, other: "_RoomyLayer", width: int) -> None:
        """Appends the rows of another layer; both are padded on the left to `width` tokens."""
        keys = [_widened(layer._held_keys, width, dim=2) for layer in (self, other)]
        values = [_widened(layer._held_values, width, dim=2) for layer in (self, other)]
        self._hold(torch.cat(keys), torch.cat(values))

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys = self._roomy_keys = keys
        self.values = self._roomy_values = values

    @property
    def _held_keys(self) -> torch.Tensor:
        assert self.keys is not None  # noqa: S101
        return self.keys

    @property
    def _held_values(self) -> torch.Tensor:
        assert self.values is not None  # noqa: S101
        return self.values


def _appended(roomy: torch.Tensor, held: torch.Tensor, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Appends the states of new tokens to `held`, the beginning of `roomy`. Returns both anew."""
    length = held.shape[2]
    end = length + new.shape[2]
    if end > roomy.shape[2]:
        roomy = new.new_empty((*new.shape[:2], end + _ROOM, new.shape[3]))
        roomy[:, :, :length] = held
    roomy[:, :, length:end] = new
    return roomy, roomy[:, :, :end]


def _widened(states: torch.Tensor, width: int, *, dim: int) -> torch.Tensor:
    """Returns the states with zeros before them, up to `width` tokens along `dim`."""
    missing = width - states.shape[dim]
    if missing == 0:
        return states
    shape = list(states.shape)
    shape[dim] = missing
    return torch.cat([states.new_zeros(shape), states], dim=dim)


class _Single:
    """One continuation, with a cache of whatever kind the model has; steps as `generate` of transformers does."""

    def __init__(self, model: Any, row: Continuation) -> None:
        self.rows = [row]
        self._model = model
        inner = _inner(model)
        self._ids = torch.tensor([list(row.prompt)], device=next(model.parameters()).device)
        self._inputs: dict[str, Any] = {"attention_mask": torch.ones_like(self._ids), "use_cache": True}
        if inner._supports_default_dynamic_cache():
            name = "cache_params" if "mamba" in type(inner).__name__.lower() else "past_key_values"
            self._inputs[name] = DynamicCache(config=inner.config.get_text_config(decoder=True))

    def logits(self) -> torch.Tensor:
        """Returns the scores of the next token, [1, vocabulary]."""
        inner, (row,) = _inner(self._model), self.rows
        if row.newest < 0:
            prepared = inner.prepare_inputs_for_generation(self._ids, is_first_iteration=True, **self._inputs)
        else:
            self._ids = torch.cat([self._ids, self._ids.new_tensor([[row.newest]])], dim=-1)
            prepared = inner.prepare_inputs_for_generation(self._ids, next_sequence_length=1, **self._inputs)
        output = self._model(**prepared, return_dict=True)
        self._inputs = inner._update_model_kwargs_for_generation(output, self._inputs)
        last: torch.Tensor = output.logits[:, -1]
        return last

    def keep(self, indices: Sequence[int]) -> None:
        """Removes the continuation if `indices` is empty."""
        self.rows = [self.rows[index] for index in indices]
