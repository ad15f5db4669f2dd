"""Names of INL base models, which begin with random weights: `inl-small`, `inl-3b,tokenizer=org/name,seed=7`."""

import re
from dataclasses import dataclass
from typing import Final, Self

from engine.inl.sizes import SIZES

DEFAULT_TOKENIZER: Final = "smollm2-135m"
_FORM: Final = re.compile(
    r"(?P<size>inl-[a-z0-9]+)(?:,tokenizer=(?P<tokenizer>[^,]+))?(?:,seed=(?P<seed>\d{1,18}))?", re.ASCII
)


def has_random_weights(base_model: str) -> bool:
    """Returns True for the id of a base model that nobody has trained: its weights are random numbers."""
    return InlReference.parse(base_model) is not None


@dataclass(frozen=True)
class InlReference:
    """A size, the base model whose tokenizer it reads text with, and the seed of its weights."""

    size: str
    tokenizer: str = DEFAULT_TOKENIZER
    seed: int = 0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Returns None if `text` does not name an INL model."""
        found = _FORM.fullmatch(text)
        if found is None or found["size"] not in SIZES:
            return None
        return cls(found["size"], found["tokenizer"] or DEFAULT_TOKENIZER, int(found["seed"] or 0))

    def __str__(self) -> str:
        """The shortest name of the same model."""
        tokenizer = f",tokenizer={self.tokenizer}" if self.tokenizer != DEFAULT_TOKENIZER else ""
        return f"{self.size}{tokenizer}{f',seed={self.seed}' if self.seed else ''}"
