"""The text of an answer as it grows: whole characters, and nothing of a stop text."""

from collections.abc import Sequence
from typing import Final

from engine.data.tokenizer import Tokenizer

_INCOMPLETE: Final = "\ufffd"
"""Character that a decoder writes for bytes that are no character, such as the first token of a character of two."""


class AnswerText:
    """Turns tokens into text. The pieces together are the text of all tokens, cut at the first stop text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._before = self._told = 0
        """The tokens before `_told` are in `_held` or were returned. Decoding starts at `_before`, since the text of a
        token may depend on the one before it."""
        self._held = ""
        """Text that may be the beginning of a stop text."""
        self.stopped = False
        """True once a stop text was found; nothing follows."""

    def add(self, token: int) -> str:
        """Returns the text that is certain after another token."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(_INCOMPLETE):
            return ""
        self._before, self._told = self._told, len(self._ids)
        return self._certain(text)

    def end(self) -> str:
        """Returns the rest of the text, without a character that is not complete."""
        if self.stopped:
            return ""
        text = self._certain(self._new_text().rstrip(_INCOMPLETE)) + self._held
        self._held = ""
        return text

    def _new_text(self) -> str:
        decode = self._tokenizer.decode
        known = decode(self._ids[self._before : self._told])
        return decode(self._ids[self._before :])[len(known) :]

    def _certain(self, text: str) -> str:
        if self.stopped:
            return ""
        held = self._held + text
        found = [place for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return held[: min(found)]
        # The longest end that begins a stop text.
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """Returns the length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
