"""The named sizes of INL models. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

MODEL_TYPE: Final = "inl"
ARCHITECTURE: Final = "InlForCausalLM"
"""Its class, as config.json names it."""
VOCABULARY: Final = 50257
"""Number of tokens of GPT-2's tokenizer."""
CONTROLLER_SIZE: Final = 64
"""Hidden size of each of the four controllers of a block."""


@dataclass(frozen=True)
class InlSize:
    """The dimensions of a named INL model; its feed-forward size is four times its hidden size."""

    hidden: int
    layers: int
    iterations: int
    """Number of integration steps of each block."""
    context: int
    """Maximum sequence length in tokens."""

    def num_parameters(self, vocabulary: int = VOCABULARY) -> int:
        """Returns the number of its weights; those of the head are those of the embedding."""
        inner = 4 * self.hidden
        controllers = 4 * CONTROLLER_SIZE * (3 * self.hidden + 1 + self.hidden)
        # The context layer, the controllers with the biases of their last layers, two norms, μ, γ and φ; the
        # feed-forward layers.
        mixing = self.hidden**2 + self.hidden + controllers + 4 * self.hidden + 4 * self.hidden + 3 * self.hidden
        block = mixing + 2 * self.hidden * inner + inner + self.hidden
        return vocabulary * self.hidden + self.layers * block + 2 * self.hidden

    def config(self, vocabulary: int = VOCABULARY) -> dict[str, Any]:
        """Returns the values of its config.json."""
        return {
            "model_type": MODEL_TYPE,
            "vocab_size": vocabulary,
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_iterations": self.iterations,
            "intermediate_size": 4 * self.hidden,
            "max_position_embeddings": self.context,
            "tie_word_embeddings": True,
        }


SIZES: Final[dict[str, InlSize]] = {
    "inl-small": InlSize(512, 6, 5, 512),
    "inl-medium": InlSize(768, 12, 7, 1024),
    "inl-large": InlSize(1024, 24, 10, 2048),
    "inl-xlarge": InlSize(1536, 32, 12, 4096),
    "inl-3b": InlSize(2048, 40, 15, 4096),
    "inl-4b": InlSize(2304, 48, 15, 4096),
}


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a model's tensors by name, of a config.json with all values of `InlSize.config`."""
    size, inner = config["hidden_size"], config.get("intermediate_size") or 4 * config["hidden_size"]
    norm: dict[str, tuple[int, ...]] = {"weight": (size,), "bias": (size,)}
    hidden = 4 * CONTROLLER_SIZE
    modules: dict[str, dict[str, tuple[int, ...]]] = {
        "context_norm": norm,
        "context": {"weight": (size, size), "bias": (size,)},
        "controllers.from_average": {"weight": (hidden, size), "bias": (hidden,)},
        **{key: {"weight": (hidden, size)} for key in ("controllers.from_state", "controllers.from_velocity")},
        **{
            f"controllers.{name}": {"weight": (size, CONTROLLER_SIZE), "bias": (size,)}
            for name in ("alpha", "beta", "gate", "target")
        },
        "feed_forward_norm": norm,
        "feed_forward.up_proj": {"weight": (inner, size), "bias": (inner,)},
        "feed_forward.down_proj": {"weight": (size, inner), "bias": (size,)},
    }
    block: dict[str, tuple[int, ...]] = dict.fromkeys(("mu", "frequency", "phase"), (size,))
    block |= {f"{module}.{name}": shape for module, tensors in modules.items() for name, shape in tensors.items()}
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], size)}
    for index in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    return found | {f"model.norm.{name}": shape for name, shape in norm.items()}
