"""Names of base models that begin with random weights: `inl-small`, `random:org/name,tokenizer=org/other,seed=7`."""

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from engine.inl_sizes import SIZES

DEFAULT_TOKENIZER: Final = "smollm2-135m"
"""Base model whose tokenizer INL models have by default; models of another shape have that of their shape."""
RANDOM: Final = "random:"
"""Prefix of a model with the shape of another one."""
CORPUS: Final = "corpus"
"""Tokenizer that preflight trains on the rows of the job."""
CORPUS_TOKENIZER: Final = "tokenizer/tokenizer.json"
"""Path of that tokenizer in the job's folder of token shards."""
VOCAB_SIZE: Final = 32_000
"""Tokens of a tokenizer of the corpus, unless the name gives a number."""
MIN_VOCAB_SIZE: Final = 257
"""The bytes and the end-of-text token."""
MAX_VOCAB_SIZE: Final = 1_000_000
_FORM: Final = re.compile(
    r"(?P<random>random:)?(?P<shape>(?!random:)[^,]+)(?:,tokenizer=(?P<tokenizer>[^,]+))?"
    r"(?:,vocab_size=(?P<vocab_size>\d{1,7}))?(?:,seed=(?P<seed>\d{1,18}))?",
    re.ASCII,
)
_TRAINED: Final = re.compile(r"corpus:(?P<sha256>[0-9a-f]{64})")


def has_random_weights(base_model: str) -> bool:
    """Returns True for the id of a base model that nobody has trained: its weights are random numbers."""
    return RandomReference.parse(base_model) is not None


@dataclass(frozen=True)
class RandomReference:
    """A shape, the tokenizer that text is read with, and the seed of the weights."""

    shape: str
    """An INL size, or the base model whose config.json describes the model."""
    tokenizer: str
    """The base model whose tokenizer it has; CORPUS for one to be trained on the rows of the job, and `corpus:SHA256`
    (of its tokenizer.json) once it is."""
    seed: int = 0
    vocab_size: int = VOCAB_SIZE
    """Tokens of a tokenizer that is to be trained; VOCAB_SIZE for all others."""

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Returns None if `text` does not name a model with random weights."""
        found = _FORM.fullmatch(text)
        if found is None or (not found["random"] and found["shape"] not in SIZES):
            return None
        shape = found["shape"]
        named = cls(shape, found["tokenizer"] or _default_tokenizer(shape), int(found["seed"] or 0))
        if found["vocab_size"] is None:
            return named
        vocab_size = int(found["vocab_size"])
        allowed = named.tokenizer == CORPUS and MIN_VOCAB_SIZE <= vocab_size <= MAX_VOCAB_SIZE
        return replace(named, vocab_size=vocab_size) if allowed else None

    @property
    def is_inl(self) -> bool:
        """True for the shape of an INL size."""
        return self.shape in SIZES

    @property
    def has_own_tokenizer(self) -> bool:
        """True if the model that gives the shape gives the tokenizer too."""
        return self.tokenizer == self.shape

    @property
    def needs_corpus(self) -> bool:
        """True if the tokenizer is trained on the rows of the job, which has not been done."""
        return self.tokenizer == CORPUS

    @property
    def corpus_sha256(self) -> str:
        """SHA-256 of the tokenizer.json that was trained on the rows of a job; empty for all other tokenizers."""
        found = _TRAINED.fullmatch(self.tokenizer)
        return found["sha256"] if found else ""

    @property
    def sources(self) -> list[str]:
        """The base models whose shape and tokenizer it has, which the catalogue knows."""
        own = [] if self.is_inl else [self.shape]
        return own if self.needs_corpus or self.corpus_sha256 else list(dict.fromkeys([*own, self.tokenizer]))

    def with_corpus_tokenizer(self, sha256: str) -> Self:
        """Returns the same model with the tokenizer that was trained."""
        return replace(self, tokenizer=f"{CORPUS}:{sha256}", vocab_size=VOCAB_SIZE)

    def __str__(self) -> str:
        """The shortest name of the same model."""
        shown = [self.shape if self.is_inl else f"{RANDOM}{self.shape}"]
        if self.tokenizer != _default_tokenizer(self.shape):
            shown.append(f"tokenizer={self.tokenizer}")
        if self.vocab_size != VOCAB_SIZE:
            shown.append(f"vocab_size={self.vocab_size}")
        return ",".join([*shown, *([f"seed={self.seed}"] if self.seed else [])])


def _default_tokenizer(shape: str) -> str:
    return DEFAULT_TOKENIZER if shape in SIZES else shape
