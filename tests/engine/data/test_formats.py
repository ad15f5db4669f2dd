"""Rows of every shape become what was meant, or are refused with what to change."""

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from engine.data.formats import Example, RowReader
from engine.data.rows import Row, RowProblem
from engine.errors import JobError

USER = {"role": "user", "content": "Weather?"}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "4°C"}
ANSWER = {"role": "assistant", "content": "Cold."}
CALLED = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def read(row: dict[str, Any], **options: Any) -> Example | RowProblem:
    reader = RowReader(options.pop("mapping", {}), options.pop("system_prompt", None), options.pop("format_", None))
    (found,) = reader.read(Row(1, row))
    return found


def example(row: dict[str, Any], **options: Any) -> Example:
    found = read(row, **options)
    assert isinstance(found, Example), found
    return found


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT, ANSWER]},
        {"messages": json.dumps([USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT, ANSWER])},
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "4°C"},
                {"from": "gpt", "value": "Cold."},
            ]
        },
    ],
)
def test_tool_calls_are_kept_however_they_are_written(row: dict[str, Any]) -> None:
    """A call that is dropped leaves an empty answer behind, and that is what would be learned."""
    schema = [{"type": "function", "function": {"name": "weather"}}]
    found = example(row | {"tools": json.dumps(schema)})
    call = dict(found.messages[1]["tool_calls"][0])
    call.pop("id", None)
    assert call == CALLED
    assert [message["role"] for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.tools == schema


def test_turns_say_whether_they_are_trained() -> None:
    """A wrong answer in the middle of a good conversation is context, not a lesson."""
    wrong = {"role": "assistant", "content": "No idea.", "weight": 0}
    found = example({"messages": [USER, wrong, USER, ANSWER | {"train": True}]}, system_prompt="Be brief.")
    assert found.untrained == {2}
    assert all(set(message) == {"role", "content"} for message in found.messages)


def test_parts_of_text_are_joined_and_nulls_of_parquet_left_out() -> None:
    parts = [{"type": "text", "text": "Wea", "image_url": None}, {"type": "text", "text": "ther?"}]
    found = example({"messages": [{"role": "user", "content": parts, "tool_calls": None}, ANSWER], "tools": None})
    assert found.messages[0] == USER


def test_ids_are_taken_as_they_are_without_their_padding() -> None:
    row = {"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100], "attention_mask": [1, 1, 1, 0]}
    found = example(row | {"text": "what they were made of"})
    assert (found.input_ids, found.labels) == ([5, 6, 7], [-100, 6, 7])
    assert example({"input_ids": "[1, 2]"}).labels == [1, 2]


def test_the_format_can_be_said() -> None:
    row = {"text": "Once", "question": "Q?", "answer": "A"}
    assert example(row).is_chat
    assert example(row, format_="text").completion == "Once"
    wrong = read({"text": "Once"}, format_="chat")
    assert isinstance(wrong, RowProblem)
    assert wrong.reason == "MISSING_COLUMN"


def test_mapping_to_a_missing_column_is_named() -> None:
    """The advice was to name the column with the option that had just been given."""
    wrong = read({"question": "Q?", "reply": "A"}, mapping={"answer": "replyy"})
    assert isinstance(wrong, RowProblem)
    assert wrong.message == (
        "has no column 'replyy', which the mapping names as answer (it has question, reply); correct the mapping"
    )


def test_preference_pairs_are_told_apart_and_can_be_mapped() -> None:
    """Trained on as they come, half of them would teach the answer that was rejected."""
    pairs = {"prompt": "Q?", "chosen": "A", "rejected": "B"}
    with pytest.raises(JobError, match="preference pairs") as caught:
        read(pairs)
    assert caught.value.reason == "UNSUPPORTED_FORMAT"
    assert example(pairs, mapping={"completion": "chosen"}).completion == "A"
    assert example({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, mapping={"messages": "chosen"}).is_chat


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, "MISPLACED_TOOL_CALL"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "BAD_TOOL_CALL"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": ["weather"]}]}, "BAD_TOOL_CALL"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}]}, "BAD_TOOL_CALL"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]}, "BAD_TOOL_CALL"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "EMPTY_VALUE"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "EMPTY_VALUE"),
        ({"messages": [RESULT, ANSWER]}, "NO_QUESTION"),
        ({"messages": [USER, ANSWER, {"role": "system", "content": "S"}, ANSWER]}, "MISPLACED_SYSTEM"),
        ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "BAD_WEIGHT"),
        ({"messages": [USER | {"train": True}, ANSWER]}, "NOT_AN_ANSWER"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "UNSUPPORTED_CONTENT"),
        ({"messages": [USER, ANSWER], "tools": ["weather"]}, "WRONG_TYPE"),
        ({"messages": [USER, ANSWER], "tools": "[" * 5000}, "NOT_JSON"),
        ({"messages": "[not json"}, "NOT_JSON"),
        ({"messages": [USER, "hello"]}, "WRONG_TYPE"),
        ({"question": "a\0b", "answer": "A"}, "NUL_CHARACTER"),
        ({"text": b"bytes"}, "WRONG_TYPE"),
        ({"input_ids": [1, 2], "labels": [1]}, "WRONG_LENGTH"),
        ({"input_ids": [1, -2]}, "ID_OUT_OF_RANGE"),
        ({"input_ids": [1.0]}, "WRONG_TYPE"),
        ({"input_ids": [1], "attention_mask": [2]}, "WRONG_TYPE"),
        ({"input_ids": [1], "attention_mask": [0]}, "EMPTY_VALUE"),
        ({"input_ids": []}, "EMPTY_VALUE"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_with_its_reason(row: dict[str, Any], reason: str) -> None:
    found = read(row)
    assert isinstance(found, RowProblem)
    assert found.reason == reason
    assert found.message


def test_a_conversation_takes_its_system_turn_from_a_column() -> None:
    """So do several public sets; a system turn that is not seen is not learned."""
    turns = [{"from": "Human", "value": "Why?"}, {"from": "GPT", "value": "So."}]
    found = example({"conversations": turns, "system": "Be kind."}, system_prompt="Be brief.")
    assert [(turn["role"], turn["content"]) for turn in found.messages] == [
        ("system", "Be kind."), ("user", "Why?"), ("assistant", "So."),
    ]  # fmt: skip


def test_the_first_way_to_call_functions_and_thoughts_are_kept() -> None:
    called = {"role": "assistant", "content": None, "function_call": CALL["function"], "reasoning_content": "Hm."}
    found = example({"messages": [USER, called, {"role": "function", "name": "weather", "content": "4°C"}, ANSWER]})
    assert found.messages[1]["tool_calls"] == [CALLED]
    assert found.messages[1]["reasoning_content"] == "Hm."


def test_turns_outside_of_question_and_answer_are_cut_and_told() -> None:
    wrong = {"role": "assistant", "content": "No idea.", "weight": 0}
    system = {"role": "system", "content": "Brief."}
    row = {"messages": [system, ANSWER, USER, wrong, USER, ANSWER, USER]}
    *told, found = RowReader({}, None).read(Row(1, row))
    assert [(each.reason, each.effect) for each in told if isinstance(each, RowProblem)] == [
        ("LEADING_TURNS", "warns"), ("TRAILING_TURNS", "warns"),
    ]  # fmt: skip
    assert isinstance(found, Example)
    assert [turn["role"] for turn in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert found.untrained == {2}


@pytest.mark.parametrize(
    ("value", "said"), [(datetime(2026, 1, 1), "a timestamp"), (Decimal("1.5"), "a decimal number"), ({}, "an object")]
)
def test_a_value_that_is_no_text_is_told_what_it_is(value: object, said: str) -> None:
    """Parquet has values that JSON has no name for."""
    found = read({"question": value, "answer": "A"})
    assert isinstance(found, RowProblem)
    assert said in found.message
