"""Which language a text is in, by CLD2: 83 of them, told by the letters and how they follow on each other."""

from engine.data.formats import Example

try:
    import pycld2
except ImportError:
    # There is no wheel of it for Linux on ARM, and a statistic is no reason to ask for a compiler.
    pycld2 = None

_READ_CHARACTERS = 400
_MOSTLY_PERCENT = 60
_ALL_UP_TO_ROW = 1000
_EACH = 16


def is_sampled(row: int) -> bool:
    """Whether languages are looked at in a row: in the first 1,000, and in each sixteenth behind them. In each row they
    would take up to a quarter of the time that its tokens take."""
    return pycld2 is not None and (row <= _ALL_UP_TO_ROW or row % _EACH == 0)


def texts_of(example: Example) -> list[tuple[str, str]]:
    """(role, text) of what is said in a row; the roles of one that is no conversation are prompt and completion."""
    if example.messages:
        return [(turn["role"], turn["content"]) for turn in example.messages if turn["content"]]
    pairs = [("prompt", example.prompt), ("completion", example.completion)]
    return [(role, text) for role, text in pairs if text]


def language_of(text: str) -> str:
    """Code of the language of the first 400 characters (en, de, zh, zh-Hant; of three letters where there is none of
    two); empty where they are too few to tell, in several languages, or in none."""
    text = text[:_READ_CHARACTERS]
    if not text.isprintable():
        # Control characters would be refused as if they were broken UTF-8.
        text = "".join(letter if letter.isprintable() else " " for letter in text)
    reliable, _, ((_, code, share, _), *_) = pycld2.detect(text)
    return code if reliable and share >= _MOSTLY_PERCENT else ""
