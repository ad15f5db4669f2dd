"""How much memory a training takes, roughly: enough to choose between recomputing activations and keeping them."""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config.job import JobConfig

# Interpreter, torch, libraries and the allocator's slack, as seen on CPU; on a GPU its context and workspaces.
_OVERHEAD_BYTES = 1_300_000_000
# Values a transformer layer keeps for the backward pass, per token: 14 of hidden and 4 of feed-forward size. With
# LoRA in fp32 this gives 57 kB for SmolLM2-135M's layers, where 54 kB were measured.
_KEPT_HIDDEN, _KEPT_FEED_FORWARD = 14, 4


@dataclass(frozen=True)
class ModelShape:
    """What of a model's configuration decides memory."""

    num_parameters: int
    layers: int
    hidden: int
    feed_forward: int
    vocabulary: int
    linear: Mapping[str, tuple[int, ...]]
    """Shapes of the weights that adapters can attach to, by module name."""

    @classmethod
    def of(
        cls, num_parameters: int, config: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]]
    ) -> "ModelShape":
        """From config.json and the shapes in the headers of the safetensors files."""
        text = config.get("text_config")
        section = text if isinstance(text, Mapping) else config

        def number(*names: str) -> int:
            found = (section.get(name) for name in names)
            return next((value for value in found if isinstance(value, int)), 0)

        hidden = number("hidden_size", "n_embd", "d_model")
        heads = ("embed", "wte", "wpe", "lm_head")
        linear = {
            name.removesuffix(".weight"): shape
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) == 2 and not any(head in name for head in heads)
        }
        return cls(
            num_parameters,
            number("num_hidden_layers", "n_layer"),
            hidden,
            number("intermediate_size", "n_inner") or 4 * hidden,
            number("vocab_size"),
            linear,
        )

    def adapter_parameters(self, r: int, target_modules: list[str]) -> int:
        """Parameters of rank-`r` adapters on the named modules; on all of them when none is named."""
        chosen = (
            shape
            for name, shape in self.linear.items()
            if not target_modules or any(name == target or name.endswith(f".{target}") for target in target_modules)
        )
        return sum(r * (rows + columns) for rows, columns in chosen)


def training_bytes(
    config: JobConfig, shape: ModelShape, *, method: str, on_gpu: bool, half: bool, tokens: int, recompute: bool
) -> int:
    """Peak bytes of a training process whose longest row has `tokens` tokens; `half`: 16-bit arithmetic."""
    hyper = config.hyperparameters
    batch_tokens = hyper.per_device_train_batch_size * (hyper.max_length if hyper.packing else tokens)
    value_bytes = 2 if half else 4
    if method == "full":
        # Weights, gradients and the two moments of Adam, all fp32.
        states = 16 * shape.num_parameters
    else:
        linear = sum(rows * columns for rows, columns in shape.linear.values())
        rest = shape.num_parameters - linear
        full_bytes = 2 if on_gpu else 4
        weight_bytes = config.quantization.bits / 8 + 0.07 if method == "qlora" else full_bytes
        adapters = shape.adapter_parameters(config.lora.r, config.lora.target_modules)
        states = int(linear * weight_bytes) + rest * full_bytes + 16 * adapters
    per_layer = batch_tokens * (_KEPT_HIDDEN * shape.hidden + _KEPT_FEED_FORWARD * shape.feed_forward) * value_bytes
    if recompute:
        # One layer at a time is whole; of the others only their inputs are kept.
        activations = per_layer + shape.layers * batch_tokens * shape.hidden * value_bytes
    else:
        activations = shape.layers * per_layer
    logits = 2 * 4 * batch_tokens * shape.vocabulary
    return states + activations + logits + _OVERHEAD_BYTES
