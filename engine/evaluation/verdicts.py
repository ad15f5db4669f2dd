"""Findings about the losses of a training, with advice."""

import math
from collections.abc import Iterator, Sequence
from typing import Final

from engine.perplexity import perplexity

LOSS_ROUNDING: Final = 1e-4
"""Differences between losses up to this, in nats per token, may come from the arithmetic: an adapter that changes
nothing moves a loss by some 1e-6, always in the same direction."""
_SMALL_GAP: Final = 0.5
_LARGE_GAP: Final = 1.0
"""Nats per token by which the held-out loss is above the training loss."""
_TEXT_PERPLEXITY: Final = 20
_CODE_PERPLEXITY: Final = 10


def gap_verdict(gap: float, epochs: float) -> str:
    """Describes by how much the held-out loss is above the training loss, in nats per token, after `epochs` passes over
    the training rows (0: unknown)."""
    if gap < _SMALL_GAP:
        return f"no sign of overfitting: below {_SMALL_GAP:g}"
    if 0 < epochs <= 1:
        return (
            f"{_SMALL_GAP:g} or more, but within the first epoch, where overfitting is rare: the rows held out may "
            "differ from those that were trained"
        )
    if gap <= _LARGE_GAP:
        return f"some overfitting: {_SMALL_GAP:g} to {_LARGE_GAP:.1f}"
    return f"overfitting: above {_LARGE_GAP:.1f}. Train for fewer epochs, or on more rows"


def training_findings(
    final_train_loss: float, final_eval_loss: float | None, *, epochs: float, early_stopped: bool
) -> Iterator[str]:
    """Yields a sentence about the gap of the losses, the perplexity, and the end of a training."""
    if final_eval_loss is None:
        return
    gap = final_eval_loss - final_train_loss
    side = "above" if gap >= 0 else "below"
    yield f"At the last step the held-out loss is {abs(gap):.4f} {side} the training loss ({gap_verdict(gap, epochs)})."
    reached = perplexity(final_eval_loss)
    if reached >= _CODE_PERPLEXITY:
        met = "meets that of text only" if reached < _TEXT_PERPLEXITY else "meets neither"
        yield (
            f"The held-out perplexity in training is {reached:.4g}; usual targets are below {_TEXT_PERPLEXITY} on text "
            f"and below {_CODE_PERPLEXITY} on code, so it {met}. If the loss fell in the training, more rows of this "
            "kind or more epochs lower it; if it rose, a lower learning rate does."
        )
    if early_stopped:
        yield "Training stopped early, because the held-out loss no longer fell; more epochs would not have helped."


def cut_answers(model: str, lengths: Sequence[int], max_new_tokens: int) -> Iterator[str]:
    """Yields a sentence if answers of the model, of these numbers of tokens, may be cut off at the limit."""
    cut = sum(length >= max_new_tokens for length in lengths)
    if cut:
        yield (
            f"{cut:,} of {len(lengths):,} answers of {model} reached the limit of {max_new_tokens:,} tokens and may be "
            "cut off, which lowers their metrics; raise evaluation.max_new_tokens if complete answers are longer."
        )


def is_worse(tuned_loss: float, base_loss: float) -> bool:
    """Returns True if the tuned model's loss is higher by more than rounding, or not a number. A base loss that is no
    number says nothing."""
    return math.isnan(tuned_loss) or tuned_loss - base_loss > LOSS_ROUNDING
