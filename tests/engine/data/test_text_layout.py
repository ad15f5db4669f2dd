"""The positions of a conversation's texts in its rendering."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.conversations import Message
from engine.data.text_layout import Piece, layout_of
from engine.data.tokenizer import Tokenizer
from tests.engine.data.chat_templates import TEMPLATES
from tests.tiny_models import make_tiny_tokenizer

_TEXTS = st.sampled_from(
    [
        "",
        "user",
        "assistant",
        "Is it?",
        "It is",
        "It is so",
        " Where is Bern? ",
        "In Switzerland.",
        "é 🎉",
        "<b>bold</b>",
    ]
)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {
        name: Tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp(name), chat_template=template))
        for name, template in TEMPLATES.items()
    }


@pytest.mark.parametrize("template", TEMPLATES)
@settings(max_examples=100, deadline=None)
@given(texts=st.lists(_TEXTS, min_size=1, max_size=6), thoughts=st.lists(_TEXTS, min_size=6, max_size=6))
def test_texts_found_by_searching_are_those_found_by_marks(
    tokenizers: dict[str, Tokenizer], template: str, texts: list[str], thoughts: list[str]
) -> None:
    """A text searched at a wrong place would report an unwritten system prompt as written."""
    tokenizer = tokenizers[template]
    messages: list[Message] = [{"role": "system", "content": texts[0]}]
    for index, text in enumerate(texts[1:]):
        if index % 2:
            messages.append({"role": "assistant", "content": text, "reasoning_content": thoughts[index]})
        else:
            messages.append({"role": "user", "content": text})

    def render(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> str:
        return tokenizer.render(messages, tools=tools)

    text = render(messages, [])
    searched = layout_of(render, messages, [], text, tokenizer.template)
    # No text is searched for if the template could have written each of them itself.
    marked = layout_of(render, messages, [], text, "".join(texts + thoughts))
    if marked is not None:
        assert searched == marked


def test_distinct_texts_are_found_without_a_second_rendering() -> None:
    """Rendering every conversation once more takes a seventh of the preparation's time."""

    def render(_: Sequence[Message], __: Sequence[dict[str, Any]]) -> str:
        raise AssertionError("rendered again")

    messages: list[Message] = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "It is."}]
    layout = layout_of(render, messages, [], "<user>Is it?<assistant>It is.", "<{{ role }}>{{ content }}")
    assert layout is not None
    assert layout.pieces == [Piece(0, "content"), Piece(1, "content")]
    assert layout.spans == {0: [(6, 12)], 1: [(23, 29)]}
