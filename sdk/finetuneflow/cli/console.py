"""The consoles that `ftf` prints to. Text from files and servers is shown as text and never controls the terminal."""

from __future__ import annotations

import codecs
import io
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

_ESCAPE = "finetuneflow.escape"
"""Name of the error handler that `escape_unencodable` registers."""

# C0 without tab and line feed, DEL, C1, the bidirectional controls, and surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    r"""Replaces control characters by escapes such as \u001b, which JSON and TOML decode again. Tabs and line feeds are
    kept."""
    return _CONTROLS.sub(lambda control: f"\\u{ord(control[0]):04x}", text)


def visible_cell(text: str) -> str:
    """Replaces tabs and line feeds as well: in a table they would start another cell or row."""
    return visible(text).replace("\t", "\\t").replace("\n", "\\n")


class SafeConsole(Console):
    """A console without markup and emoji that shows control characters, and does not wrap lines in a pipe."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, soft_wrap=True, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Text from elsewhere; rich's own control codes are in segments of their own.
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))


def escape_unencodable(stream: TextIO) -> None:
    r"""Makes a stream write `\u6f22` for a character that its encoding lacks, which JSON reads as that character.

    Without it the command would end in a traceback, in the middle of its output and with another exit code.
    """
    codecs.register_error(_ESCAPE, _escaped)
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ESCAPE)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    # JSON knows no other form: what lies above U+FFFF is a pair.
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2)), error.end


def make_console() -> Console:
    """Returns the console of stdout."""
    return SafeConsole(file=sys.stdout)


def error_console() -> Console:
    """Returns the console of stderr."""
    return SafeConsole(file=sys.stderr)
