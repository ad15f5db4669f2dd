"""Derives the chat template of a Modelfile, in the language of Go's text/template, from a chat template in Jinja.

The Jinja template is given conversations of markers. The texts between the markers are the parts of the Go template,
which is proved on other conversations: both templates write the same text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.errors import JobError

Turn = dict[str, Any]
Render = Callable[[Sequence[Turn], bool], str]
"""Renders a conversation with the Jinja template. The flag: the conversation is to be answered."""


class NotDerivable(Exception):
    """No Go template writes what the chat template writes. The message is the reason."""


@dataclass(frozen=True)
class GoTemplate:
    """A chat template for Ollama."""

    text: str
    after_answer: str
    """The text that follows each answer."""


def go_template(render: Render) -> GoTemplate:
    """Derives and proves the template. Raises NotDerivable."""
    try:
        parts = _parts(render)
        text = _text(parts)
        for turns in CONVERSATIONS:
            if render_go(text, turns) != render(turns, True):
                raise NotDerivable("the text of a turn depends on its place, its content or the other turns")
    except JobError as error:
        raise NotDerivable(f"the chat template refuses a conversation: {error.message}") from error
    return GoTemplate(text, parts.assistant[1])


@dataclass(frozen=True)
class _Parts:
    """Texts that the chat template writes around the contents of the turns."""

    no_system: str
    """Before the first turn, if there is no system prompt."""
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    """Before the answer that is to be generated."""


_MARKS: Final = tuple(f"Mark{letter}Qx" for letter in "ABCDEF")


def _turns(*roles: str) -> list[Turn]:
    return [{"role": role, "content": mark} for role, mark in zip(roles, _MARKS, strict=False)]


def _parts(render: Render) -> _Parts:
    def between(*roles: str, answered: bool = False) -> list[str]:
        written, parts = render(_turns(*roles), answered), []
        for mark in _MARKS[: len(roles)]:
            before, found, written = written.partition(mark)
            if not found or mark in written:
                raise NotDerivable("it does not write the content of each turn once and in order")
            parts.append(before)
        return [*parts, written]

    whole = between("system", "user", "assistant", "user", "assistant", "user")
    if whole[2:4] != whole[4:6]:
        raise NotDerivable("the text of a turn depends on its place")
    after_user, after_assistant = whole[6], between("system", "user", "assistant")[3]
    user = _without(whole[3], start=after_assistant), after_user
    assistant = _without(whole[2], start=after_user), after_assistant
    system = whole[0], _without(whole[1], end=user[0])
    answered = between("user", answered=True)
    no_system = _without(answered[0], end=user[0])
    return _Parts(no_system, system, user, assistant, _without(answered[1], start=after_user))


def _without(text: str, start: str = "", end: str = "") -> str:
    if not text.startswith(start) or not text.endswith(end):
        raise NotDerivable("the text of a turn depends on the turn beside it")
    return text.removeprefix(start).removesuffix(end)


def _text(parts: _Parts) -> str:
    def turn(texts: tuple[str, str]) -> str:
        return f"{_literal(texts[0])}{{{{ .Content }}}}{_literal(texts[1])}"

    # The answer to continue is the last turn; what ends an answer would end it.
    before, after = map(_literal, parts.assistant)
    assistant = f"{before}{{{{ .Content }}}}{{{{ if not $last }}}}{after}{{{{ end }}}}"
    first = f"{{{{ if not .System }}}}{_literal(parts.no_system)}{{{{ end }}}}" if parts.no_system else ""
    answer = (
        f'{{{{ if and $last (ne .Role "assistant") }}}}{_literal(parts.answer)}{{{{ end }}}}' if parts.answer else ""
    )
    return (
        f"{first}{{{{ range $i, $_ := .Messages }}}}{{{{ $last := eq (len (slice $.Messages $i)) 1 }}}}"
        f'{{{{ if eq .Role "system" }}}}{turn(parts.system)}'
        f'{{{{ else if eq .Role "user" }}}}{turn(parts.user)}'
        f'{{{{ else if eq .Role "assistant" }}}}{assistant}{{{{ end }}}}{answer}{{{{ end }}}}'
    )


def _literal(text: str) -> str:
    # A brace at the end would join those of the next action.
    return re.sub(r"\{\{|\{$", lambda found: f'{{{{ "{found[0]}" }}}}', text)


_HARD: Final = "Quotes: \"a\", 'b', `c` \\ \\n.\n\n\tA line, {{ .Content }} {% if x %} <b>&amp;</b>"
CONVERSATIONS: Final[Sequence[Sequence[Turn]]] = [
    [{"role": role, "content": content} for role, content in turns]
    for turns in (
        [("user", "Hello")],
        [("user", _HARD)],
        [("system", "Be brief."), ("user", "Grüße, 世界 🦙")],
        [("user", "One?"), ("assistant", "1"), ("user", "Two?"), ("assistant", _HARD), ("user", "Three?")],
        [("system", _HARD), ("user", "One?"), ("assistant", "Дa — e\u0301"), ("user", "1 + 1 = ?")],
        [("system", "Be brief.")] + [("user", "Again?"), ("assistant", "Again.")] * 3 + [("user", "And now?")],
    )
]
"""Contents have no spaces at either end: many chat templates remove these, which Go's templates cannot."""


_ACTION: Final = re.compile(r"\{\{(.*?)\}\}", re.DOTALL)
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[()]|[^\s()]+')


def render_go(template: str, messages: Sequence[Turn]) -> str:
    """Renders a template of `go_template` as Go's text/template and Ollama do: `range`, `if`, `else if`, variables, and
    the functions eq, ne, and, not, len and slice. For nothing else."""
    parts = _ACTION.split(template)
    # No action but that of two braces contains a delimiter, and none the closing one.
    tokens = [(index % 2 == 1, part.strip() if index % 2 else part) for index, part in enumerate(parts)]
    system = "\n\n".join(str(turn["content"]) for turn in messages if turn["role"] == "system")
    root = {"System": system, "Messages": list(messages)}
    body, rest = _parse(tokens, 0)
    if rest != len(tokens):
        raise ValueError("the template has an end too many")
    return "".join(_rendered(body, root, {"$": root}))


def _parse(tokens: Sequence[tuple[bool, str]], at: int) -> tuple[list[Any], int]:
    """Returns the nodes up to the `end` or `else` that closes them, and its index."""
    nodes: list[Any] = []
    while at < len(tokens):
        action, text = tokens[at]
        keyword = text.partition(" ")[0] if action else ""
        if keyword in ("end", "else"):
            return nodes, at
        if keyword in ("range", "if"):
            branches, condition = [], text
            while True:
                body, at = _parse(tokens, at + 1)
                branches.append((condition, body))
                condition = tokens[at][1].removeprefix("else ")
                if tokens[at][1] == "end":
                    break
            nodes.append((keyword, branches))
        else:
            nodes.append(("action" if action else "text", text))
        at += 1
    return nodes, at


def _rendered(nodes: Sequence[Any], dot: Mapping[str, Any], variables: dict[str, Any]) -> Iterator[str]:
    for kind, value in nodes:
        if kind == "text":
            yield value
        elif kind == "range":
            (_, body), *_ = value
            for index, item in enumerate(dot["Messages"]):
                turn = {"Role": item["role"], "Content": item["content"]}
                yield from _rendered(body, turn, {**variables, "$i": index})
        elif kind == "if":
            for condition, body in value:
                if _value(condition.removeprefix("if "), dot, variables):
                    yield from _rendered(body, dot, variables)
                    break
        elif value.startswith("$last := "):
            variables["$last"] = _value(value.removeprefix("$last := "), dot, variables)
        else:
            yield str(_value(value, dot, variables))


_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    "eq": lambda left, right: left == right,
    "ne": lambda left, right: left != right,
    "and": lambda left, right: left and right,
    "not": lambda value: not value,
    "len": len,
    "slice": lambda items, start: items[start:],
}


def _value(expression: str, dot: Mapping[str, Any], variables: Mapping[str, Any]) -> Any:
    tokens = _TOKEN.findall(expression)

    def operand() -> Any:
        token = tokens.pop(0)
        if token == "(":  # noqa: S105
            value = call()
            tokens.pop(0)
            return value
        if token.startswith('"'):
            return token[1:-1]
        if token.isdigit():
            return int(token)
        if token.startswith("$."):
            return variables["$"][token[2:]]
        return variables[token] if token.startswith("$") else dot[token[1:]]

    def call() -> Any:
        if tokens[0] not in _FUNCTIONS:
            return operand()
        function, arguments = _FUNCTIONS[tokens.pop(0)], []
        while tokens and tokens[0] != ")":
            arguments.append(operand())
        return function(*arguments)

    return call()
