"""The architecture of a model, read from its config.json and the headers of its weights: the basis of all estimates."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from engine.config.job import Lora
from engine.errors import JobError, Violation
from engine.inl_sizes import CONTROLLER_SIZE, MODEL_TYPE
from engine.inl_sizes import tensor_shapes as inl_tensor_shapes
from engine.model_folder import context_length, known_shapes, read_json

Family = Literal["decoder", "inl", "other"]
Norm = Literal["llama", "gemma"]

_GEMMA = ("gemma", "gemma2", "gemma3", "gemma3_text")
_FUSED = ("phi3",)
_QUERY_BIAS = ("qwen2", "qwen2_moe")
_QUERY_NORM = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text")
_SANDWICH = ("gemma2", "gemma3", "gemma3_text")
_TIED_BY_DEFAULT = (*_GEMMA, MODEL_TYPE)


@dataclass(frozen=True)
class LinearLayer:
    """One linear layer of a decoder block; adapters attach to it, and QLoRA quantises it."""

    name: str
    """Name within the block, such as `self_attn.q_proj`."""
    rows: int
    """Size of its output for one token."""
    columns: int
    """Size of its input for one token."""
    bias: bool = False

    @property
    def num_weights(self) -> int:
        return self.rows * self.columns


@dataclass(frozen=True)
class Architecture:
    """A causal language model of `layers` equal blocks.

    Norms and biases follow the transformers implementation of `model_type`. An unknown type is treated as a Llama
    unless the names of the tensors (`of_folder`) show a difference.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    feed_forward: int
    vocabulary: int
    tied: bool
    """True if the head shares the embedding's weights."""
    context: int = 0
    """Maximum sequence length in tokens; 0 if unknown."""
    experts: int = 0
    """Feed-forward networks per block of a mixture of experts; 0 for a dense model."""
    experts_per_token: int = 0
    query_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    fused: bool = False
    """Query, key and value are one layer, and so are gate and up (Phi-3)."""
    query_norm: bool = False
    sandwich: bool = False
    """Norms also follow attention and feed-forward (Gemma 2 and 3)."""
    norm: Norm = "llama"
    softcap: bool = False
    """Attention logits are soft-capped, which only the eager implementation of attention supports."""
    iterations: int = 0
    """Iterations of an INL block; 0 for other families."""
    vision: bool = False
    """The model also has an image part, which is not counted here."""
    extra_parameters: int = 0
    """Number of parameters in the weights' headers that the configuration does not explain."""
    stored_linears: tuple[LinearLayer, ...] = ()
    """Linear layers of a block as the weights' headers name them, if the names are not the usual ones."""
    blocks_path: str = "model.layers"
    """Path of the list of blocks."""
    stored_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False, repr=False)
    """Shapes of all stored tensors by name; empty if only the configuration is known (see `shapes`)."""

    @property
    def family(self) -> Family:
        """Kind of block. `other`: the linear layers are known, their order is not."""
        if self.stored_linears:
            return "other"
        return "inl" if self.model_type == MODEL_TYPE else "decoder"

    @cached_property
    def linears(self) -> tuple[LinearLayer, ...]:
        """The linear layers of one block that adapters attach to, in the order they run.

        Experts are not included: each is stored as one tensor, which PEFT's `all-linear` skips.
        """
        if self.stored_linears:
            return self.stored_linears
        return tuple(self._inl_linears() if self.family == "inl" else self._decoder_linears())

    def _decoder_linears(self) -> Iterator[LinearLayer]:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.fused:
            yield LinearLayer("self_attn.qkv_proj", query + 2 * key, self.hidden)
        else:
            yield LinearLayer("self_attn.q_proj", query, self.hidden, self.query_bias)
            yield LinearLayer("self_attn.k_proj", key, self.hidden, self.query_bias)
            yield LinearLayer("self_attn.v_proj", key, self.hidden, self.query_bias)
        yield LinearLayer("self_attn.o_proj", self.hidden, query, self.output_bias)
        if self.experts:
            return
        if self.fused:
            yield LinearLayer("mlp.gate_up_proj", 2 * self.feed_forward, self.hidden)
        else:
            yield LinearLayer("mlp.gate_proj", self.feed_forward, self.hidden, self.feed_forward_bias)
            yield LinearLayer("mlp.up_proj", self.feed_forward, self.hidden, self.feed_forward_bias)
        yield LinearLayer("mlp.down_proj", self.hidden, self.feed_forward, self.feed_forward_bias)

    def _inl_linears(self) -> Iterator[LinearLayer]:
        yield LinearLayer("context", self.hidden, self.hidden, True)
        for given in ("average", "state", "velocity"):
            yield LinearLayer(f"controllers.from_{given}", 4 * CONTROLLER_SIZE, self.hidden, given == "average")
        for output in ("alpha", "beta", "gate", "target"):
            yield LinearLayer(f"controllers.{output}", self.hidden, CONTROLLER_SIZE, True)
        yield LinearLayer("feed_forward.up_proj", self.feed_forward, self.hidden, True)
        yield LinearLayer("feed_forward.down_proj", self.hidden, self.feed_forward, True)

    def named(self, target_modules: Sequence[str]) -> tuple[LinearLayer, ...]:
        """Returns the layers of a block whose name ends in one of `target_modules`; all layers if it is empty."""
        return tuple(
            layer
            for layer in self.linears
            if not target_modules or any(layer.name == t or layer.name.endswith(f".{t}") for t in target_modules)
        )

    def targets(self, lora: Lora) -> list[tuple[LinearLayer, ...]]:
        """Returns, for each block, the layers that get adapters. Raises what `matching` raises."""
        if lora.target_modules_pattern is not None:
            paths = [
                f"{self.blocks_path}.{block}.{layer.name}" for block in range(self.layers) for layer in self.linears
            ]
            matched = set(matching(lora.target_modules_pattern, paths))
            return [
                tuple(layer for layer in self.linears if f"{self.blocks_path}.{block}.{layer.name}" in matched)
                for block in range(self.layers)
            ]
        everywhere = self.named(lora.target_modules)
        in_blocks = {target for target in lora.target_modules if not self.named([target])}
        return [
            (everywhere if not in_blocks else self._in_block(block, everywhere, in_blocks))
            if not lora.layers_to_transform or block in lora.layers_to_transform
            else ()
            for block in range(self.layers)
        ]

    def _in_block(
        self, block: int, everywhere: Collection[LinearLayer], paths: Collection[str]
    ) -> tuple[LinearLayer, ...]:
        """Returns the layers `everywhere`, and those whose path ends in one of `paths`, such as
        `model.layers.0.self_attn.q_proj`, as peft saves the targets of an adapter."""

        def ends(layer: LinearLayer) -> bool:
            parts = f"{self.blocks_path}.{block}.{layer.name}".split(".")
            return any(".".join(parts[start:]) in paths for start in range(len(parts)))

        return tuple(layer for layer in self.linears if layer in everywhere or ends(layer))

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of the tensors by name, as stored; if only the configuration is known, under the names of a Llama."""
        if self.stored_shapes:
            return self.stored_shapes
        found = {"model.embed_tokens.weight": (self.vocabulary, self.hidden), "model.norm.weight": (self.hidden,)}
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, self.hidden)
        for block in range(self.layers):
            for layer in self.linears:
                found[f"{self.blocks_path}.{block}.{layer.name}.weight"] = (layer.rows, layer.columns)
            for name in ("input_layernorm", "post_attention_layernorm"):
                found[f"{self.blocks_path}.{block}.{name}.weight"] = (self.hidden,)
        return found

    def saved_tensors(self, modules_to_save: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Returns name and shape of the tensors of all modules whose path ends in one of `modules_to_save`.

        A tied head is the embedding.
        """
        tied = {"lm_head", "embed_tokens"} if self.tied else set()
        names = {*modules_to_save, *(tied if tied & {*modules_to_save} else ())}
        return {
            name: shape
            for name, shape in self.shapes.items()
            if any(path.endswith(wanted) for path in _modules_around(name) for wanted in names)
        }

    @cached_property
    def block_norms(self) -> tuple[int, ...]:
        """The sizes of a block's norm weights."""
        sizes = [self.hidden] * (4 if self.sandwich else 2)
        return (*sizes, *([self.head_dim] * 2 if self.query_norm else []))

    @cached_property
    def block_tensors(self) -> tuple[tuple[int, int], ...]:
        """The shapes of all tensors of one block; a vector is (1, n)."""
        shapes = [(layer.rows, layer.columns) for layer in self.linears]
        shapes += [(1, layer.rows) for layer in self.linears if layer.bias]
        if self.family == "inl":
            # Two LayerNorms with bias; the attractor, and frequency and phase of its oscillation.
            return (*shapes, *([(1, self.hidden)] * 7))
        if self.experts:
            shapes.append((self.experts, self.hidden))
            shapes += [(self.experts * 2 * self.feed_forward, self.hidden)]
            shapes += [(self.experts * self.hidden, self.feed_forward)]
        return (*shapes, *((1, size) for size in self.block_norms))

    @cached_property
    def tensors(self) -> tuple[tuple[int, int], ...]:
        """The shapes of all tensors of the model: embedding, head unless tied, blocks, last norm."""
        last = [(1, self.hidden)] * (2 if self.family == "inl" else 1)
        ends = [(self.vocabulary, self.hidden)] * (1 if self.tied else 2)
        return (*ends, *(self.block_tensors * self.layers), *last)

    @cached_property
    def num_linear_weights(self) -> int:
        """Number of weights in the linear layers of all blocks, which QLoRA quantises."""
        return self.layers * sum(layer.num_weights for layer in self.linears)

    @cached_property
    def num_parameters(self) -> int:
        return sum(rows * columns for rows, columns in self.tensors) + self.extra_parameters

    @property
    def num_embedding_weights(self) -> int:
        """Number of weights in the embedding."""
        return self.vocabulary * self.hidden

    @cached_property
    def num_active_parameters(self) -> int:
        """Number of parameters that a token passes through.

        A mixture of experts runs only some of its experts; an INL block runs its controllers once per iteration,
        except their layer for the average.
        """
        idle = (self.experts - self.experts_per_token) * 3 * self.hidden * self.feed_forward * self.layers
        controllers = 4 * (2 * self.hidden + self.hidden) * CONTROLLER_SIZE
        return self.num_parameters - idle + max(self.iterations - 1, 0) * controllers * self.layers

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Architecture":
        """Builds it from a Hugging Face config.json. Raises JobError("UNKNOWN_ARCHITECTURE") if a size is missing."""
        text = config.get("text_config")
        values: Mapping[str, Any] = {**config, **text} if isinstance(text, Mapping) else config

        def number(*names: str, default: int | None = None) -> int:
            for name in names:
                if isinstance(values.get(name), int) and not isinstance(values[name], bool):
                    return int(values[name])
            for name in names:
                if values.get(name) is not None and default is None:
                    raise _unknown(f"{name} in its config.json is {str(values[name])[:80]!r} instead of a whole number")
            if default is None:
                raise _unknown(f"its config.json has none of the fields {', '.join(names)}")
            return default

        kind = str(values.get("model_type") or config.get("model_type") or "")
        hidden = number("hidden_size", "n_embd", "d_model")
        heads = number("num_attention_heads", "n_head", default=1)
        tied = values.get("tie_word_embeddings", config.get("tie_word_embeddings"))
        biased = bool(values.get("attention_bias", False))
        experts = number("num_experts", "num_local_experts", default=0)
        inner = ["moe_intermediate_size"] if experts else []
        return cls(
            model_type=kind,
            layers=number("num_hidden_layers", "n_layer", "num_layers"),
            hidden=hidden,
            heads=heads,
            kv_heads=number("num_key_value_heads", default=heads),
            head_dim=number("head_dim", default=hidden // heads),
            feed_forward=number(*inner, "intermediate_size", "n_inner", "ff_size", default=4 * hidden),
            vocabulary=number("vocab_size"),
            tied=bool(kind in _TIED_BY_DEFAULT if tied is None else tied),
            context=context_length(config),
            experts=experts,
            experts_per_token=number("num_experts_per_tok", default=1) if experts else 0,
            query_bias=biased or kind in _QUERY_BIAS,
            output_bias=biased,
            feed_forward_bias=bool(values.get("mlp_bias", False)),
            fused=kind in _FUSED,
            query_norm=kind in _QUERY_NORM,
            sandwich=kind in _SANDWICH,
            norm="gemma" if kind in _GEMMA else "llama",
            softcap=bool(values.get("attn_logit_softcapping")),
            iterations=number("num_iterations", "num_iterations_per_layer", default=1) if kind == MODEL_TYPE else 0,
            vision="vision_config" in config,
        )

    def module_names(self) -> list[str]:
        """Returns the names that `target_modules` accepts."""
        return sorted({layer.name.rpartition(".")[2] for layer in self.linears})

    @classmethod
    def of_folder(cls, folder: Path) -> "Architecture":
        """Builds it from a model's config.json, corrected by the shapes of its tensors."""
        config = read_json(folder / "config.json")
        return cls.of_tensors(config, known_shapes(folder))

    @classmethod
    def of_tensors(cls, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> "Architecture":
        """Builds it from a config.json and the shapes of the tensors by name.

        Where the two differ, the tensors decide: biases, norms and fused layers are recognised by name. Parameters that
        the configuration does not explain are counted as extra_parameters.
        """
        found = cls.from_config(config)
        if found.family == "inl":
            return replace(found, stored_shapes=shapes or inl_tensor_shapes(config))
        if not shapes:
            return found
        text = {name: shape for name, shape in shapes.items() if not _belongs_to_other_modality(name)}
        first = {match[2]: shape for name, shape in text.items() if (match := _FIRST_BLOCK.search(name))}
        blocks = next((match.group(1) for name in text if (match := _FIRST_BLOCK.search(name))), "")
        seen = replace(
            found,
            blocks_path=blocks or found.blocks_path,
            stored_shapes=text,
            # A stored head may still be the embedding, saved twice.
            tied=found.tied or not any(name.endswith(_HEADS) for name in text),
            query_bias="self_attn.q_proj.bias" in first,
            output_bias="self_attn.o_proj.bias" in first,
            feed_forward_bias="mlp.up_proj.bias" in first,
            fused="self_attn.qkv_proj.weight" in first,
            query_norm="self_attn.q_norm.weight" in first,
            sandwich="post_feedforward_layernorm.weight" in first,
        )
        stored = [
            LinearLayer(name.removesuffix(".weight"), shape[0], shape[1], name.replace(".weight", ".bias") in first)
            for name, shape in first.items()
            if name.endswith(".weight") and len(shape) == 2
        ]
        if {layer.name for layer in stored} != {layer.name for layer in seen.linears} and not seen.experts:
            seen = replace(seen, stored_linears=tuple(stored))
        counted = sum(math.prod(shape) for name, shape in text.items() if not (seen.tied and name.endswith(_HEADS)))
        return replace(seen, extra_parameters=counted - seen.num_parameters)


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """Returns the paths that a caller's regular expression matches as a whole, as peft matches them.

    Raises JobError("INVALID_CONFIG") if it takes more than a second for one path.
    """
    # Unlike `re`, it stops after a time: an expression such as (.+)+x would hold its process for hours.
    import regex

    compiled = regex.compile(pattern)
    try:
        return [path for path in paths if compiled.fullmatch(path, timeout=_MATCH_SECONDS)]
    except TimeoutError:
        message = "takes too long to match the path of a module; write it without nested repetitions."
        where = [Violation("spec.lora.target_modules_pattern", message)]
        raise JobError("INVALID_CONFIG", f"lora.target_modules_pattern {message}", message, where) from None


_MATCH_SECONDS = 1.0
_HEADS = ("lm_head.weight", "embed_out.weight")
_FIRST_BLOCK = re.compile(r"^((?:.*\.)?(?:layers|h|blocks|block|layer))\.0\.(.+)$")


def _modules_around(tensor: str) -> Iterator[str]:
    """Yields the paths of the module that has the tensor, and of those that it is part of."""
    path = tensor
    while "." in path:
        path = path.rpartition(".")[0]
        yield path


def _belongs_to_other_modality(name: str) -> bool:
    return any(part in name for part in ("vision", "visual", "multi_modal", "audio", "rotary_emb"))


def _unknown(why: str) -> JobError:
    message = f"The size of the model is unknown: {why}."
    return JobError("UNKNOWN_ARCHITECTURE", message, "Use another base model.", [Violation("base_model", message)])
