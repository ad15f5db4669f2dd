"""The configuration of an INL model, as transformers reads and writes it."""

from typing import Any

from transformers import PreTrainedConfig

from engine.inl_sizes import MODEL_TYPE, VOCABULARY


class InlConfig(PreTrainedConfig):
    """Values of an INL model's config.json. Its defaults are the size `inl-small`."""

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - as transformers declares it

    vocab_size: int = VOCABULARY
    hidden_size: int = 512
    num_hidden_layers: int = 6
    num_iterations: int = 5
    """Number of integration steps of each block; they share its weights."""
    intermediate_size: int | None = None
    """Size of the feed-forward layer; by default four times the hidden size."""
    max_position_embeddings: int = 512
    """Context in tokens. Longer inputs are refused."""
    dropout: float | int = 0.1
    """Share of the values of a block's integrated state that are dropped in training."""
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    """Standard deviation of the initial embedding and linear weights."""
    position_scale: float | int = 1.0
    """Factor of the sinusoidal positions, whose values are between -1 and 1. With a value near `initializer_range` the
    first steps of a training learn more of the tokens, which start much smaller."""
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]
