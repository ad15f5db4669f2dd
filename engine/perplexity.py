"""Perplexity of a loss."""

import math


def perplexity(loss: float) -> float:
    """Returns exp(loss) for a loss in nats per token; infinity where that exceeds a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
