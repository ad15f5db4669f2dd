"""The text of an answer as it is streamed."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.data.tokenizer import Tokenizer
from services.evaluator.resident.answer_text import AnswerText
from tests.tiny_models import make_tiny_tokenizer

CHINESE = "你好，世界！Ünïcode 👩‍🚀 fin"


MIXED = "Ja: 你好，世界！ 👩‍🚀🇩🇪 e\u0301 ½ नमस्ते\n🫠🫠 fin"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module", params=["byte level", "byte fallback"])
def any_tokenizer(
    request: pytest.FixtureRequest, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Tokenizer:
    """A tokenizer as those of GPT-2, Llama 3 and Qwen, and one as those of Llama 2 and Gemma."""
    return tokenizer if request.param == "byte level" else _byte_fallback(tmp_path_factory.mktemp("fallback"))


def _byte_fallback(folder: Path) -> Tokenizer:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    make_tiny_tokenizer(folder)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    known = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"Jaefin:"]
    fast = Fast(models.BPE({token: number for number, token in enumerate(known)}, [], byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens(specials)
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder)


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


def test_answer_may_end_at_any_token(any_tokenizer: Tokenizer) -> None:
    """Half a Chinese character or emoji at the end of the tokens must be neither shown nor cost what is before it."""
    ids = any_tokenizer.encode(MIXED).ids
    assert len(ids) > len(MIXED) + 30, "the test needs characters of several tokens"
    shown = set()
    for end in range(len(ids) + 1):
        answer = AnswerText(any_tokenizer, ())
        parts = [*(answer.add(token) for token in ids[:end]), answer.end()]
        text = "".join(parts)
        assert "\ufffd" not in text
        assert MIXED.startswith(text)
        shown.add(text)
    complete = {MIXED[:end] for end in range(1, len(MIXED) + 1) if not MIXED[end - 1].isascii()}
    assert complete <= shown, "each character as soon as its last token is there"


@settings(deadline=None)
@given(ids=st.lists(st.integers(3, 383), min_size=1, max_size=30))
def test_parts_of_any_tokens_are_the_whole_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """A model that is not trained well writes bytes that are no characters, in the middle too."""
    answer = AnswerText(tokenizer, ())
    parts = [*(answer.add(token) for token in ids), answer.end()]
    whole = tokenizer.decode(ids)
    assert "".join(parts) == whole.rstrip("\ufffd")
    assert "\ufffd" in whole or not any("\ufffd" in part for part in parts)


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
