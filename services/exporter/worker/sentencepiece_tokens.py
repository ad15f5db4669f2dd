"""The tokens that llama.cpp makes of a text with a vocabulary of SentencePiece's kind, and their scores.

llama.cpp does not read the merges of such a tokenizer: it joins neighbours whose texts together are a token, the one
with the highest score first.
"""

import heapq
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from gguf import GGUFReader, TokenType

_TOKENS, _SCORES, _TYPES = (f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
_SPACE: Final = "▁"
_SPECIAL: Final = (TokenType.CONTROL, TokenType.USER_DEFINED)


def is_sentencepiece(reader: GGUFReader) -> bool:
    """Returns True if the file's tokenizer is of this kind."""
    field = reader.get_field("tokenizer.ggml.model")
    return field is not None and field.contents() == "llama"


def set_scores(reader: GGUFReader, tokenizer_json: Path) -> None:
    """Gives the tokens of a file, opened for writing, the scores that follow from the order of the merges.

    From a tokenizer.json llama.cpp's converter gives all tokens the same score, and neighbours would be joined from
    left to right.
    """
    field = reader.get_field(_SCORES)
    if field is None or len({float(field.parts[part][0]) for part in field.data}) > 1:
        return
    ids = {token: id_ for id_, token in enumerate(_contents(reader, _TOKENS))}
    merges = json.loads(tokenizer_json.read_text("utf-8"))["model"].get("merges") or []
    for rank, merge in reversed([*enumerate(merges)]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        if (id_ := ids.get(left + right)) is not None:
            field.parts[field.data[id_]][0] = -float(rank)
    reader.data.flush()


def _contents(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the file has no {key}")
    return field.contents()


@dataclass(frozen=True)
class SentencePieceTokens:
    """The tokenizer in a GGUF file."""

    ids: dict[str, int]
    """The tokens by their texts."""
    scores: Sequence[float]
    special: re.Pattern[str]
    """Matches the tokens that are taken from a text before all others."""
    adds_space: bool
    """True if a space is put before a text, and after each special token."""

    @classmethod
    def of(cls, reader: GGUFReader) -> "SentencePieceTokens":
        """Reads the tokenizer of a file for which `is_sentencepiece` is true."""
        tokens, scores, types = (_contents(reader, key) for key in (_TOKENS, _SCORES, _TYPES))
        special = [token for token, type_ in zip(tokens, types, strict=True) if type_ in _SPECIAL]
        adds_space = reader.get_field("tokenizer.ggml.add_space_prefix")
        return cls(
            ids={token: id_ for id_, token in enumerate(tokens)},
            scores=scores,
            special=re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)"),
            adds_space=adds_space is None or bool(adds_space.contents()),
        )

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of a text, without one for its beginning."""
        ids, end = [], 0
        for found in self.special.finditer(text):
            ids += [*self._joined(text[end : found.start()]), self.ids[found[0]]]
            end = found.end()
        return [*ids, *self._joined(text[end:])]

    def _joined(self, text: str) -> Iterator[int]:
        """Yields the tokens of a text between special ones."""
        if not text:
            return
        parts: list[str | None] = list((" " * self.adds_space + text).replace(" ", _SPACE))
        before, after = list(range(-1, len(parts) - 1)), [*range(1, len(parts)), -1]
        queue: list[tuple[float, int, str]] = []

        def propose(left: int) -> None:
            joined = (parts[left] or "") + (parts[after[left]] or "")
            if (id_ := self.ids.get(joined)) is not None:
                heapq.heappush(queue, (-self.scores[id_], left, joined))

        for left in range(len(parts) - 1):
            propose(left)
        while queue:
            _, left, joined = heapq.heappop(queue)
            right = after[left]
            # One of the two may have been joined with another part since.
            if parts[left] is None or right < 0 or f"{parts[left]}{parts[right]}" != joined:
                continue
            parts[left], parts[right] = joined, None
            after[left] = after[right]
            if after[left] >= 0:
                before[after[left]] = left
                propose(left)
            if before[left] >= 0:
                propose(before[left])
        for part in filter(None, parts):
            if part in self.ids:
                yield self.ids[part]
            else:
                yield from (self.ids[f"<0x{byte:02X}>"] for byte in part.encode())
