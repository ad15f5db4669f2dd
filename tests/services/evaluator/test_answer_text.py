"""The text of an answer as it is streamed."""

import pytest

from engine.data.tokenizer import Tokenizer
from services.evaluator.resident.answer_text import AnswerText
from tests.tiny_models import make_tiny_tokenizer

CHINESE = "你好，世界！Ünïcode 👩‍🚀 fin"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def pieces(tokenizer: Tokenizer, text: str, stops: tuple[str, ...] = ()) -> tuple[list[str], AnswerText]:
    """What is streamed of an answer whose tokens are those of `text`."""
    answer = AnswerText(tokenizer, stops)
    found = [answer.add(token) for token in tokenizer.encode(text).ids]
    return [*found, answer.end()], answer


def test_characters_of_several_tokens_are_never_cut(tokenizer: Tokenizer) -> None:
    """A reader would see replacement characters that no later text repairs."""
    assert len(tokenizer.encode(CHINESE).ids) > len(CHINESE), "the test needs characters of several tokens"
    found, _ = pieces(tokenizer, CHINESE)
    assert "".join(found) == CHINESE
    assert not any("\ufffd" in piece for piece in found)
    assert len([piece for piece in found if piece]) > 5, "it must be streamed"


def test_unfinished_character_at_the_end_is_left_out(tokenizer: Tokenizer) -> None:
    """max_new_tokens may end an answer in the middle of a character."""
    answer = AnswerText(tokenizer, ())
    ids = tokenizer.encode("ab你").ids
    found = [answer.add(token) for token in ids[:-1]]
    assert "".join([*found, answer.end()]) == "ab"


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one ENEND", ("END",), "one EN"),
        ("first\n\nsecond", ("\n\n", "second"), "first"),
        ("你好世界", ("世",), "你好"),
        ("aab", ("aab", "ab"), ""),
        ("tail E", ("END",), "tail E"),
    ],
)
def test_stop_text_and_its_beginning_are_not_streamed(
    tokenizer: Tokenizer, text: str, stops: tuple[str, ...], expected: str
) -> None:
    """A caller who stops at a marker does not want to remove half of it."""
    found, answer = pieces(tokenizer, text, stops)
    assert "".join(found) == expected
    assert answer.stopped == (expected != text)
    # At no moment is more streamed than what stays.
    assert all(expected.startswith("".join(found[:end])) for end in range(len(found)))


def test_control_tokens_are_text(tokenizer: Tokenizer) -> None:
    """The evaluation's samples show them as well."""
    found, _ = pieces(tokenizer, "a<|im_start|>b")
    assert "".join(found) == "a<|im_start|>b"
