"""Escapes untrusted text (names, questions, answers) for Markdown."""

import re

# Text of a model or a data set must not become a link, an image, markup or another column of a table.
_SPECIAL = re.compile(r"([\\`*|<>\[\]#&~])")


def escape(text: str, limit: int = 160) -> str:
    """One line of at most `limit` characters of the text, shown literally; `…` where it was cut."""
    line = " ".join(text.split())
    if len(line) > limit:
        line = line[: limit - 1].rstrip() + "…"
    return _SPECIAL.sub(r"\\\1", line)


def row(*cells: str) -> str:
    """A table row of cells that are already Markdown."""
    return f"| {' | '.join(cells)} |"
