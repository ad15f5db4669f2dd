"""Locates the texts of a conversation in its rendering by the chat template.

The conversation is rendered a second time with a mark before and after each of its texts. If that rendering equals the
first one without the marks, the marks give the position of each text and show which texts are missing, even if two
turns have the same text. No knowledge about any model's template is needed. The second rendering is saved for short
conversations whose texts each occur exactly once in the first one.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from engine.data.conversations import Message

Span = tuple[int, int]
Kind = Literal["content", "thought", "call", "tool"]
Render = Callable[[Sequence[Message], Sequence[dict[str, Any]]], str]

_TAG = re.compile(r"<[^<>\s]{1,80}>|\[/?[A-Z_]{1,40}\]")
"""Templates split texts at tags such as <think> and reassemble them, so marks are not placed next to tags."""
_MOST_PARTS = 64
"""Maximum number of parts between tags that are marked one by one; a text with more is marked as a whole."""
_MOST_SEARCHED = 16
"""Maximum number of turns whose texts are searched for; searching takes the number of turns times the text's length."""
NO_TURN = -1
"""Turn index of the texts in the list of tools."""


@dataclass(frozen=True)
class Piece:
    """A text of the conversation, or a part of one between two tags."""

    turn: int
    kind: Kind


@dataclass(frozen=True)
class Layout:
    """The rendering of a conversation, and the spans of its texts."""

    text: str
    pieces: list[Piece]
    spans: dict[int, list[Span]] = field(default_factory=dict)
    """Index in `pieces` → spans in `text`. A piece that the template does not write is absent."""

    def missing(self) -> Iterator[Piece]:
        """Returns the pieces that the template does not write."""
        return (piece for index, piece in enumerate(self.pieces) if index not in self.spans)

    def of_turn(self, turn: int, kind: Kind | None = None) -> dict[int, list[Span]]:
        """Returns the spans of the pieces of a turn, optionally of one kind; the keys number the pieces within the
        turn."""
        own = (index for index, piece in enumerate(self.pieces) if piece.turn == turn and kind in (None, piece.kind))
        return {nth: self.spans[index] for nth, index in enumerate(own) if index in self.spans}

    def end_before(self, turn: int, position: int) -> int:
        """Returns the end of the last text of another turn that ends at or before `position`; 0 if there is none."""
        ends = (
            end
            for index, spans in self.spans.items()
            if self.pieces[index].turn != turn
            for _, end in spans
            if end <= position
        )
        return max(ends, default=0)


def layout_of(
    render: Render, messages: Sequence[Message], tools: Sequence[dict[str, Any]], text: str, template: str
) -> Layout | None:
    """Returns the layout of `text`, the rendering of the conversation by `template`; None if the template writes the
    conversation differently when it has marks."""
    if not tools and (layout := _searched_layout(messages, text, template)):
        return layout
    marks = _Marks(_key(text, messages, tools))
    marked = render(
        [marks.message(index, message) for index, message in enumerate(messages)], [marks.tool(tool) for tool in tools]
    )
    layout = Layout(text, marks.pieces)
    parts: list[str] = []
    length = position = 0
    begun: dict[int, int] = {}
    for found in marks.pattern.finditer(marked):
        parts.append(marked[position : found.start()])
        length += found.start() - position
        position = found.end()
        index = int(found[1])
        if found[2] == "b":
            begun[index] = length
        elif index in begun:
            layout.spans.setdefault(index, []).append((begun.pop(index), length))
    parts.append(marked[position:])
    return layout if "".join(parts) == text else None


def _searched_layout(messages: Sequence[Message], text: str, template: str) -> Layout | None:
    """Returns the layout of a short conversation without tools if each of its texts occurs exactly once in `text` and
    can't have been written by the template itself."""
    if len(messages) > _MOST_SEARCHED or any(message.get("tool_calls") for message in messages):
        return None
    layout = Layout(text, [])
    roles = " ".join(message["role"] for message in messages)
    for turn, message in enumerate(messages):
        texts: list[tuple[Kind, str]] = [
            ("thought", message.get("reasoning_content") or ""),
            ("content", message["content"]),
        ]
        for kind, written in texts:
            if not (core := written.strip()):
                continue
            start = text.find(core)
            if start < 0 or text.find(core, start + 1) >= 0 or core in template or core in roles or _TAG.search(core):
                return None
            layout.spans[len(layout.pieces)] = [(start, start + len(core))]
            layout.pieces.append(Piece(turn, kind))
    spans = sorted(span for (span,) in layout.spans.values())
    # A text that occurs only inside another one is missing.
    return layout if all(end <= start for (_, end), (start, _) in pairwise(spans)) else None


def _key(text: str, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
    """Returns a word that does not occur in the conversation. It has only letters, because templates escape or strip
    other characters."""
    said = text + str(messages) + str(tools)
    key = "zq"
    while key in said:
        key += "q"
    return key


class _Marks:
    """Inserts marks into texts and records the pieces."""

    def __init__(self, key: str) -> None:
        self._key = key
        self.pattern = re.compile(rf"{key}(\d+)([be])")
        self.pieces: list[Piece] = []

    def message(self, index: int, message: Message) -> Message:
        marked = dict(message)
        if thought := message.get("reasoning_content"):
            marked["reasoning_content"] = self._text(thought, Piece(index, "thought"))
        marked["content"] = self._text(message["content"], Piece(index, "content"))
        if calls := message.get("tool_calls"):
            marked["tool_calls"] = [
                {**call, "function": self._value(call["function"], Piece(index, "call"))} for call in calls
            ]
        return marked

    def tool(self, tool: dict[str, Any]) -> dict[str, Any]:
        function = tool.get("function")
        named = function if isinstance(function, dict) else tool
        if not isinstance(named.get("name"), str):
            return tool
        marked = {**named, "name": self._text(named["name"], Piece(NO_TURN, "tool"))}
        return {**tool, "function": marked} if named is function else marked

    def _value(self, value: Any, piece: Piece) -> Any:
        if isinstance(value, str):
            return self._text(value, piece)
        if isinstance(value, dict):
            return {name: self._value(item, piece) for name, item in value.items()}
        if isinstance(value, list):
            return [self._value(item, piece) for item in value]
        return value

    def _text(self, text: str, piece: Piece) -> str:
        between = _TAG.split(text)
        tags = [*_TAG.findall(text), ""]
        if len(between) > _MOST_PARTS or not any(part.strip() for part in between):
            return self._part(text, piece)
        return "".join(self._part(part, piece) + tag for part, tag in zip(between, tags, strict=True))

    def _part(self, part: str, piece: Piece) -> str:
        core = part.strip()
        if not core:
            return part
        index = len(self.pieces)
        self.pieces.append(piece)
        start = part.index(core)
        # The marks are inside the surrounding spaces, because templates strip spaces.
        return f"{part[:start]}{self._key}{index}b{core}{self._key}{index}e{part[start + len(core) :]}"
