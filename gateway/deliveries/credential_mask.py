"""Texts of other servers without the credentials that they were sent: an answer may quote a request's headers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

MASK: Final = "***"
_RUN: Final = 8
"""Characters in a row of a credential that are masked wherever they are: a server may cut what it quotes."""
_SHORTEST: Final = 3
"""Fewer characters are in any text by chance, and tell nothing."""
_CLOSING: Final = " \t\r\n\"'`.…,;:)]}>"


def without_credentials(text: str, credentials: Sequence[str], max_chars: int) -> str:
    """Returns the first `max_chars` characters of a text, in which parts of credentials are masked.

    Masked are runs of 8 characters or more, and at the end of the text the beginning of a credential.
    """
    forms = {form for each in credentials for form in (each, quote(each, safe="")) if len(form) >= _SHORTEST}
    # A credential that begins before the cut is looked at as a whole.
    text = text[: max_chars + max(map(len, forms), default=0)]
    end = len(text.rstrip(_CLOSING))
    hidden = bytearray(len(text))
    for form in forms:
        size = min(_RUN, len(form))
        runs = {form[start : start + size] for start in range(len(form) - size + 1)}
        for start in range(len(text) - size + 1):
            if text[start : start + size] in runs:
                hidden[start : start + size] = b"\1" * size
        for size in range(min(len(form), end), _SHORTEST - 1, -1):
            if text.endswith(form[:size], 0, end):
                hidden[end - size : end] = b"\1" * size
                break
    shown = [
        MASK if hidden[at] else character
        for at, character in enumerate(text)
        if not (hidden[at] and at and hidden[at - 1])
    ]
    return "".join(shown)[:max_chars]
