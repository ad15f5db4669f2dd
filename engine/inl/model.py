"""The INL causal language model.

A block projects its normalised input to a context, averages the contexts of all tokens so far, and integrates a state,
which begins as the normalised input, and its velocity over several steps that share their weights; small networks, the
controllers, set inertia, attraction, gate and target of each step from the average, the state and the velocity. The
state is added to the residual stream, and a feed-forward layer follows. No token attends to another: what a token knows
of earlier ones are their averages.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from engine.inl.cache import InlCache, InlLayerCache
from engine.inl.configuration import InlConfig
from engine.inl_sizes import CONTROLLER_SIZE

_STEP: Final = 0.1
"""Length of an integration step."""
_EXCITATION: Final = 0.03
"""Amplitude of the oscillation that is added to the velocity."""
_MAX_BETA: Final = 10.0
"""Maximum of the attraction β. The integration is stable while step · gate · β < 2 (1 + α)."""
_START_ALPHA, _START_BETA, _START_GATE = 0.8, 0.5, 0.5
_WITHOUT_POSITIONS = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k")
"""Descriptions of packed rows that are only understood beside `position_ids`."""


@dataclass(frozen=True)
class _Tokens:
    """Which positions of a batch are real tokens, and which of those before them belong to the same document."""

    positions: torch.Tensor
    """Position of each token in its document, from 0, [rows or 1, length]; arbitrary for padding."""
    counts: torch.Tensor
    """Number of real tokens of the document up to and including each position, at least 1, [rows or 1, length]."""
    real: torch.Tensor | None
    """True for real tokens, [rows, length]; None if all are."""
    documents: Sequence[int] | None
    """Lengths of the documents, padding included, of all rows one after the other; None if each row is one document."""

    def mean_so_far(self, values: torch.Tensor, cache: InlLayerCache | None) -> torch.Tensor:
        """Returns for each position the mean of `values` [rows, length, size] up to it, and updates the cache."""
        if self.real is not None:
            values = values.masked_fill(~self.real[..., None], 0)
        if self.documents is None:
            sums = values.cumsum(1)
        else:
            # Differences of sums over the whole row would carry rounding errors from one document to the next.
            parts = values.flatten(0, 1).split(list(self.documents))
            sums = torch.cat([part.cumsum(0) for part in parts]).view_as(values)
        if cache is not None:
            if cache.total is not None:
                sums = sums + cache.total[:, None]
            # Not a view, which would keep the sums of all positions.
            cache.total = sums[:, -1].clone()
        return sums / self.counts[..., None]


class InlControllers(nn.Module):
    """The four controllers of a block, each a network with one hidden layer on average, state and velocity.

    Their hidden layers are computed together, and that of the average only once for all steps.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        hidden = 4 * CONTROLLER_SIZE
        self.from_average = nn.Linear(size, hidden)
        self.from_state = nn.Linear(size, hidden, bias=False)
        self.from_velocity = nn.Linear(size, hidden, bias=False)
        self.alpha = nn.Linear(CONTROLLER_SIZE, size)
        self.beta = nn.Linear(CONTROLLER_SIZE, size)
        self.gate = nn.Linear(CONTROLLER_SIZE, size)
        self.target = nn.Linear(CONTROLLER_SIZE, size)

    def start(self) -> None:
        """Sets the last layers so that α is 0.8, β 0.5, the gate 0.5 and the target 0, whatever the input."""
        for layer, bias in (
            (self.alpha, math.log(_START_ALPHA / (1 - _START_ALPHA))),
            (self.beta, math.log(math.expm1(_START_BETA))),
            (self.gate, math.log(_START_GATE / (1 - _START_GATE))),
            (self.target, 0.0),
        ):
            init.zeros_(layer.weight)
            init.constant_(layer.bias, bias)

    def forward(
        self, average: torch.Tensor, state: torch.Tensor, velocity: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns α before it is damped, β, gate and target, [rows, length, size], in the number format of the state.

        `average` is what `from_average` returned.
        """
        given = average.dtype
        hidden = functional.relu(average + self.from_state(state.to(given)) + self.from_velocity(velocity.to(given)))
        alpha, beta, gate, target = hidden.chunk(4, dim=-1)
        exact = state.dtype
        return (
            self.alpha(alpha).to(exact).sigmoid(),
            functional.softplus(self.beta(beta).to(exact)).clamp(max=_MAX_BETA),
            self.gate(gate).to(exact).sigmoid(),
            self.target(target).to(exact),
        )


class InlFeedForward(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, config: InlConfig) -> None:
        super().__init__()
        inner = config.intermediate_size or 4 * config.hidden_size
        self.up_proj = nn.Linear(config.hidden_size, inner)
        self.down_proj = nn.Linear(inner, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Returns a tensor of the shape of `hidden`."""
        result: torch.Tensor = self.down_proj(functional.gelu(self.up_proj(hidden)))
        return result


class InlLayer(GradientCheckpointingLayer):
    """One block: the integrator and the feed-forward layer, each with a residual connection."""

    def __init__(self, config: InlConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_iterations = config.num_iterations
        self.context_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.context = nn.Linear(size, size)
        self.controllers = InlControllers(size)
        self.mu = nn.Parameter(torch.empty(size))
        """The point that attracts the state."""
        self.frequency = nn.Parameter(torch.empty(size))
        self.phase = nn.Parameter(torch.empty(size))
        self.dropout = nn.Dropout(config.dropout)
        self.feed_forward_norm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.feed_forward = InlFeedForward(config)

    def forward(
        self, hidden: torch.Tensor, tokens: _Tokens, past_key_values: InlLayerCache | None = None
    ) -> torch.Tensor:
        """Returns the residual stream after the block, [rows, length, size]."""
        given = self.context_norm(hidden)
        contexts = self.context(given)
        # Sums, states and velocities add up many small terms, which 16 bits would round away.
        exact = torch.promote_types(hidden.dtype, torch.float32)
        average = tokens.mean_so_far(contexts.to(exact), past_key_values)
        state = self._integrated(given.to(exact), average.to(hidden.dtype))
        hidden = hidden + self.dropout(state.to(hidden.dtype))
        result: torch.Tensor = hidden + self.feed_forward(self.feed_forward_norm(hidden))
        return result

    def _integrated(self, state: torch.Tensor, average: torch.Tensor) -> torch.Tensor:
        """Returns what `state` has become after all steps; it begins at rest."""
        exact = state.dtype
        mu = self.mu.to(exact)
        steps = torch.arange(self.num_iterations, device=mu.device, dtype=exact)
        excitations = _EXCITATION * torch.sin(self.frequency.to(exact) * steps[:, None] + self.phase.to(exact))
        given = self.controllers.from_average(average)
        velocity = torch.zeros_like(state)
        for excitation in excitations.unbind():
            alpha, beta, gate, target = self.controllers(given, state, velocity)
            offset = state - mu
            distance = torch.linalg.vector_norm(offset, dim=-1, keepdim=True) / math.sqrt(len(mu))
            alpha = alpha * -torch.expm1(-distance)
            velocity = torch.addcmul(torch.lerp(target, velocity, alpha) + excitation, beta, offset, value=-1)
            state = torch.addcmul(state, gate, velocity, value=_STEP)
        return state


class InlPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of an INL model."""

    config: InlConfig
    config_class = InlConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["InlLayer"]  # noqa: RUF012 - as transformers declares it
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # There is no attention that would need another implementation; without this, a job would be warned of one.
    _supports_sdpa = True
    # An earlier state cannot be restored from a later one, as assisted decoding would need it.
    _is_stateful = True

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        # It would hold keys and values; the model makes its own cache.
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        # Not of the controllers: transformers skips modules without parameters of their own.
        if isinstance(module, InlLayer):
            module.controllers.start()
            init.zeros_(module.mu)
            init.normal_(module.frequency, mean=1.0, std=0.1)
            init.normal_(module.phase, mean=0.0, std=2 * math.pi)


class InlModel(InlPreTrainedModel):
    """The model without its head."""

    def __init__(self, config: InlConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([InlLayer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: InlCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Returns the last hidden states, [rows, length, size].

        Positions where `attention_mask` [rows, length] is 0 are padding, on either side: they enter no average. Beside
        a cache the mask may cover the tokens that were read as well.

        A row may hold several documents: where `position_ids` [rows or 1, length] does not count on, a document begins,
        and its averages start anew. By default positions count the real tokens of a row.

        Raises ValueError for an input that is longer than the context; packed rows with a cache; packed rows that are
        described without `position_ids`; masks of more dimensions; caches of other models; `output_attentions`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if kwargs.get("output_attentions"):
            raise ValueError("An INL model has no attention; don't set output_attentions.")
        if past_key_values is not None and not isinstance(past_key_values, InlCache):
            name = type(past_key_values).__name__
            raise ValueError(f"An INL model needs an InlCache, not a {name}; it has no keys and values.")
        described = [name for name in _WITHOUT_POSITIONS if kwargs.get(name) is not None]
        if described and position_ids is None:
            raise ValueError(f"Packed rows are recognised by position_ids, which {described[0]} does not replace.")
        if past_key_values is not None and self.gradient_checkpointing and self.training:
            raise ValueError("With gradient checkpointing each layer is run twice, which a cache does not allow.")
        if use_cache is None:
            use_cache = bool(self.config.use_cache) and not self.training
        if use_cache and past_key_values is None and not (self.gradient_checkpointing and self.training):
            past_key_values = InlCache(len(self.layers))
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        tokens = self._tokens(hidden, attention_mask, position_ids, past_key_values)
        sinusoids = self.config.position_scale * _sinusoids(tokens.positions, hidden.shape[-1])
        hidden = hidden + sinusoids.to(hidden.dtype)
        inputs = []
        for index, layer in enumerate(self.layers):
            if output_hidden_states:
                inputs.append(hidden)
            cache: Any = None if past_key_values is None else past_key_values.layers[index]
            hidden = layer(hidden, tokens, past_key_values=cache)
        hidden = self.norm(hidden)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=past_key_values,
            hidden_states=(*inputs, hidden) if output_hidden_states else None,
        )

    def _tokens(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: InlCache | None,
    ) -> _Tokens:
        """Describes the positions of `hidden`, and advances the cache beyond them. Raises what `forward` raises."""
        rows, length = hidden.shape[:2]
        seen = 0 if cache is None else cache.get_seq_length()
        real = None
        if attention_mask is not None:
            if attention_mask.ndim != 2 or attention_mask.shape[1] not in (length, seen + length):
                shape = tuple(attention_mask.shape)
                raise ValueError(f"attention_mask must be [rows, {length}] or [rows, {seen + length}], not {shape}.")
            real = attention_mask[:, -length:].bool()
        counts = torch.ones(1, length, dtype=torch.long, device=hidden.device) if real is None else real.long()
        counts = counts.cumsum(1)
        if cache is not None and cache.counts is not None:
            counts = counts + cache.counts[:, None]
        positions = counts - 1 if position_ids is None else position_ids
        # Reading the positions waits for the GPU, so it is left out where the shape decides.
        if (seen + length > self.config.max_position_embeddings or position_ids is not None) and length:
            self._check_context(positions if real is None else positions.masked_fill(~real, 0))
        documents = None
        if position_ids is not None and length > 1:
            starts = _document_starts(position_ids, counts, real)
            if bool(starts.any()):
                if cache is not None:
                    raise ValueError("Rows with several documents cannot be read with a cache; set use_cache=False.")
                documents, counts = _documents(starts.expand(rows, length), real)
        if cache is not None:
            cache.advance(counts[:, -1].expand(rows), length)
        return _Tokens(positions, counts.clamp(min=1), real, documents)

    def _check_context(self, positions: torch.Tensor) -> None:
        length, context = int(positions.max()) + 1, self.config.max_position_embeddings
        if length > context:
            raise ValueError(f"The input has {length} tokens; the context of the model is {context}.")


class InlForCausalLM(InlPreTrainedModel, GenerationMixin):
    """The model with its head, which shares the weights of the embedding and has no bias."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 - as transformers declares it

    def __init__(self, config: InlConfig) -> None:
        super().__init__(config)
        self.model = InlModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: InlCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Returns logits [rows, length, vocabulary] and, with `labels` [rows, length], the loss in nats per token.

        A position predicts the next label; labels are -100 where nothing is predicted, as they are taken to be where
        `attention_mask` is 0. The loss is the mean over the predicted tokens or, with `num_items_in_batch`, their sum
        divided by that. Of `logits_to_keep`, an integer keeps the last positions only, 0 all, a tensor its indices.
        Other arguments and errors: see `InlModel.forward`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            if attention_mask is not None:
                labels = labels.masked_fill(attention_mask[:, -labels.shape[1] :] == 0, -100)
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )


def _sinusoids(positions: torch.Tensor, size: int) -> torch.Tensor:
    """Returns the encoding of each position, float32 [rows, length, size]: sine and cosine alternate."""
    pairs = torch.arange((size + 1) // 2, device=positions.device, dtype=torch.float32)
    angles = positions[..., None] * torch.exp(pairs * (-2 * math.log(10_000.0) / size))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)[..., :size]


def _document_starts(positions: torch.Tensor, counts: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
    """Returns True where the position of a real token does not follow that of the previous real one of its row."""
    skipped = positions - counts
    if real is None:
        return functional.pad(skipped.diff(dim=1) != 0, (1, 0))
    skipped = skipped.expand_as(real)
    indices = torch.arange(real.shape[1], device=real.device).where(real, -1)
    previous = functional.pad(indices.cummax(1).values[:, :-1], (1, 0), value=-1)
    return real & (previous >= 0) & (skipped != skipped.gather(1, previous.clamp(min=0)))


def _documents(starts: torch.Tensor, real: torch.Tensor | None) -> tuple[list[int], torch.Tensor]:
    """Returns the lengths of the documents of all rows, and the real tokens of its document up to each position."""
    first = starts.clone()
    first[:, 0] = True
    first = first.flatten()
    begins = first.nonzero()[:, 0]
    lengths = begins.diff(append=begins.new_tensor([len(first)]))
    ones = torch.ones_like(first, dtype=torch.long) if real is None else real.flatten().long()
    until = ones.cumsum(0)
    before = (until - ones)[begins]
    return lengths.tolist(), (until - before[first.cumsum(0) - 1]).view_as(starts)
