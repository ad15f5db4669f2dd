"""Detects the language of a text with CLD2, which knows 83 languages by their letters and letter sequences."""

from engine.data.formats import Example

try:
    import pycld2
except ImportError:
    # It has no wheel for Linux on ARM; a statistic does not justify requiring a compiler.
    pycld2 = None

_READ_CHARACTERS = 400
_MOSTLY_PERCENT = 60
_ALL_UP_TO_ROW = 1000
_EACH = 16


def is_sampled(row: int) -> bool:
    """Returns True if the languages of a row are detected: in the first 1,000 rows, and in every sixteenth row after
    them. Detection in every row would take up to a quarter of the time of tokenising."""
    return pycld2 is not None and (row <= _ALL_UP_TO_ROW or row % _EACH == 0)


def texts_of(example: Example) -> list[tuple[str, str]]:
    """Returns the texts of a row with their roles; if it is not a conversation, the roles are prompt and completion."""
    if example.messages:
        return [(turn["role"], turn["content"]) for turn in example.messages if turn["content"]]
    pairs = [("prompt", example.prompt), ("completion", example.completion)]
    return [(role, text) for role, text in pairs if text]


def language_of(text: str) -> str:
    """Returns the language code of the first 400 characters (en, de, zh, zh-Hant; three letters if there is no code of
    two letters); empty if the text is too short, in several languages, or in none."""
    text = text[:_READ_CHARACTERS]
    if not text.isprintable():
        # CLD2 refuses control characters as broken UTF-8.
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    reliable, _, ((_, code, share, _), *_) = pycld2.detect(text)
    return code if reliable and share >= _MOSTLY_PERCENT else ""
