"""Rows and turns that say what is trained of them are taken at their word, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.config.job import DataSource
from engine.data.files import read_rows
from engine.data.formats import Example, RowReader
from engine.data.row_templates import RowTemplate
from engine.data.rows import Row, RowProblem
from engine.data.sources import Source
from engine.errors import JobError

USER = {"role": "user", "content": "Any lamp shops?"}
ANSWER = {"role": "assistant", "content": "Three."}
QA = {"question": "Why?", "answer": "So."}


def items(row: dict[str, Any], mapping: dict[str, str] | None = None) -> list[Example | RowProblem]:
    return list(RowReader(mapping or {}, None).read(Row(1, row)))


def example(row: dict[str, Any], mapping: dict[str, str] | None = None) -> Example:
    *_, last = items(row, mapping)
    assert isinstance(last, Example), last
    return last


def problem(row: dict[str, Any]) -> RowProblem:
    (found,) = items(row)
    assert isinstance(found, RowProblem), found
    return found


def calling(arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "function": {"name": "find_shop", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


@pytest.mark.parametrize("arguments", [{"town": None, "near": [None, {"x": None}]}, None])
def test_null_in_the_arguments_of_a_call_is_trained(arguments: Any) -> None:
    """A model that never sees "town": null leaves out arguments that its tools require."""
    expected = arguments or {}
    for written in (arguments, json.dumps(arguments or {})):
        called = example({"messages": [USER, calling(written), USER, ANSWER]})
        assert called.messages[1]["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize("column", ["tools", "functions"])
def test_null_in_the_schemas_of_tools_is_kept(column: str) -> None:
    function = {"name": "f", "parameters": {"properties": {"v": {"enum": ["a", None], "default": None, "const": None}}}}
    listed = [{"type": "function", "function": function}] if column == "tools" else [function]
    for written in (listed, json.dumps(listed)):
        assert example({"messages": [USER, ANSWER], column: written}).tools == [
            {"type": "function", "function": function}
        ]


@pytest.mark.parametrize("template", [None, '{"messages": {{ messages | tojson }}}'])
def test_keys_that_a_table_pads_with_null_are_dropped_and_json_in_its_text_is_kept(
    tmp_path: Path, template: str | None
) -> None:
    """Parquet gives each call the arguments of all calls of the column; text in it is as it was written."""
    rows = [
        [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"a": 1}}]}],
        [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "g", "arguments": {"b": 2}}]}],
    ]
    text = json.dumps([USER, calling({"town": None})])
    pq.write_table(pa.table({"messages": rows}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"messages": [text]}), tmp_path / "b.parquet")
    source = Source("training_data[0]", DataSource(dataset="d", template=template), None)

    def arguments(name: str) -> list[Any]:
        found = [
            one for one in source.examples(read_rows(tmp_path / name), source.reader()) if isinstance(one, Example)
        ]
        return [one.messages[1]["tool_calls"][0]["function"]["arguments"] for one in found]

    assert arguments("a.parquet") == [{"a": 1}, {"b": 2}]
    if template is None:
        assert arguments("b.parquet") == [{"town": None}]


def test_a_template_reads_a_null_of_a_table() -> None:
    """A column of objects has every key in every row, so that a template can name it."""
    template = RowTemplate('{"question": {{ info.town | string | tojson }}, "answer": "A"}', "spec.template")
    (made,) = template.apply(Row(1, {"info": {"town": None}}, is_padded=True))
    assert isinstance(made, Row)
    assert made.values["question"] == "None"


@pytest.mark.parametrize(
    "marked",
    [
        *(
            {key: value}
            for key in ("weight", "loss", "loss_mask", "loss_scale", "loss_weight")
            for value in (0, "0", 0.0)
        ),
        *({key: False} for key in ("train", "training", "trainable", "loss")),
        {"train": "false"},
        {"masked": True},
        {"weight": 0, "train": False, "training": None},
    ],
)
def test_a_turn_marked_as_not_trained_is_not_trained(marked: dict[str, Any]) -> None:
    """Whatever the program is called for which the mark was written, the turn is a wrong answer."""
    opposite = {key: not value if isinstance(value, bool) else 1 for key, value in marked.items()}
    found = example({"messages": [USER, ANSWER | marked, USER, ANSWER | opposite]})
    assert found.untrained == {1}
    assert all(set(turn) == {"role", "content"} for turn in found.messages)


@pytest.mark.parametrize(
    ("marked", "reason", "said"),
    [
        ({"weight": 0, "train": True}, "CONTRADICTORY_WEIGHTS", "weight = 0 and train = true"),
        ({"masked": True, "loss": True}, "CONTRADICTORY_WEIGHTS", "masked = true"),
        ({"loss_scale": 0.5}, "BAD_WEIGHT", "loss_scale = 0.5"),
        ({"loss_mask": [0, 1]}, "BAD_WEIGHT", "loss_mask"),
        ({"weight": "heavy"}, "BAD_WEIGHT", "weight = heavy"),
        ({"train_detail": [{"begin_offset": 0, "train": False}]}, "UNSUPPORTED_TURN_KEY", "train_detail"),
        ({"mask": True}, "UNSUPPORTED_TURN_KEY", "mask"),
        ({"mask": 0}, "UNSUPPORTED_TURN_KEY", "mask"),
        ({"label": False}, "UNSUPPORTED_TURN_KEY", "label = false"),
    ],
)  # fmt: skip
def test_a_mark_that_is_not_certain_refuses_the_row_by_its_key(marked: dict[str, Any], reason: str, said: str) -> None:
    found = problem({"messages": [USER, ANSWER | marked]})
    assert (found.reason, found.effect) == (reason, "refuses")
    assert said in found.message


def test_marks_on_other_turns_than_answers() -> None:
    """OpenAI's rows weigh questions, which are never trained; a question that is to be trained is refused."""
    assert example({"messages": [USER | {"weight": 1, "loss": True}, ANSWER]}).untrained == frozenset()
    assert problem({"messages": [USER | {"training": True}, ANSWER]}).reason == "NOT_AN_ANSWER"
    assert example({"messages": [USER, ANSWER | {"label": "greeting", "train_detail": None}]}).untrained == frozenset()


def test_a_weight_of_the_whole_row_is_warned_of() -> None:
    warned, found = items({"messages": [USER, ANSWER], "weight": 0.5})
    assert isinstance(warned, RowProblem)
    assert (warned.reason, warned.column, warned.effect) == ("UNUSED_WEIGHT", "weight", "warns")
    assert isinstance(found, Example)
    assert len(items({"messages": [USER, ANSWER], "weight": 1})) == 1
    assert len(items(QA | {"weight": 61.5})) == 1, "kilograms"


CHAT = {"messages": [USER, ANSWER]}
TEXT = {"prompt": "Q", "completion": "A"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        *((row | {"label": value}, "preference labels") for row in (CHAT, TEXT) for value in (True, False, 0, "false")),
        (QA | {"kto_tag": False}, "preference labels"),
        ({"messages": [USER], "chosen": ANSWER, "rejected": ANSWER}, "preference pairs"),
        (CHAT | {"rejected_response": "No."}, "preference pairs"),
        (CHAT | {"rejected_messages": [ANSWER]}, "preference pairs"),
    ],
)
def test_rows_of_a_preference_method_are_refused_whatever_their_columns(row: dict[str, Any], said: str) -> None:
    """Trained as they come, unwanted answers are learned like the others."""
    with pytest.raises(JobError, match=said) as caught:
        items(row)
    assert caught.value.reason == "UNSUPPORTED_FORMAT"
    assert "map" in caught.value.advice.lower()


def test_a_label_that_is_no_preference_refuses_nothing() -> None:
    """The class of a text or an answer is called label, too; and a caller may map the columns that count."""
    assert example({"text": "Good film.", "label": 1}).completion == "Good film."
    assert example(CHAT | {"label": "weather"}).is_chat
    assert example(CHAT | {"label": None, "rejected": None, "images": []}).is_chat
    assert example(CHAT | {"label": False}, {"messages": "messages"}).is_chat
    assert example(QA | {"rejected": True}).is_chat, "a mark of an annotator, not an answer"
    warned, found = items(QA | {"label": 0})
    assert isinstance(warned, RowProblem)
    assert (warned.reason, warned.effect) == ("UNUSED_LABEL", "warns")
    assert isinstance(found, Example)


@pytest.mark.parametrize("column", ["image", "images", "audio", "audios", "video", "videos", "pixel_values"])
def test_a_row_with_media_is_refused_unless_its_text_was_mapped(column: str) -> None:
    """Without its picture, an answer about the picture is learned as a guess."""
    row = CHAT | {column: ["bridge.jpg"]}
    found = problem(row)
    assert (found.reason, found.column, found.effect) == ("UNSUPPORTED_MEDIA", column, "refuses")
    assert example(row, {"messages": "messages"}).is_chat


def test_the_mapping_that_keeps_a_row_names_the_column_of_the_file() -> None:
    """Advice that is followed must work."""
    row = {"conversations": [USER, ANSWER], "images": ["bridge.jpg"]}
    assert "--map messages=conversations (field mapping.messages of the dataset)" in problem(row).message
    assert example(row, {"messages": "conversations"}).is_chat


@pytest.mark.parametrize("text", ["<image>What is this?", "Look: <video>", "<image_1> and <image_2>", "<|image_pad|>"])
def test_a_placeholder_in_the_text_is_warned_of(text: str) -> None:
    for row in ({"messages": [{"role": "user", "content": text}, ANSWER]}, {"text": text}, QA | {"question": text}):
        warned, found = items(row)
        assert isinstance(warned, RowProblem)
        assert (warned.reason, warned.effect) == ("MEDIA_PLACEHOLDER", "warns")
        assert isinstance(found, Example)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "u"}},
        {"type": "image_url", "image_url": {"url": "u"}, "text": "a bridge"},
        {"type": "text", "text": "a bridge", "image": "bridge.jpg"},
    ],
)
def test_a_part_of_a_turn_that_is_no_text_is_refused_with_its_type(part: dict[str, Any]) -> None:
    found = problem({"messages": [{"role": "user", "content": [{"type": "text", "text": "What?"}, part]}, ANSWER]})
    assert found.reason == "UNSUPPORTED_CONTENT"
    assert "image" in found.message


CALL = {"id": "c1", "type": "function", "function": {"name": "find_shop", "arguments": {}}}


@pytest.mark.parametrize(
    ("turn", "said"),
    [
        *(
            (ANSWER | {name: value}, f"for {name}")
            for name in ("reasoning_content", "reasoning", "thinking")
            for value in (["Hm."], {"text": "Hm."}, True, 0)
        ),
        (ANSWER | {"name": 7}, "a number (7) for name"),
        ({"role": "tool", "content": "3", "tool_call_id": 7}, "for tool_call_id"),
        *((ANSWER | {"tool_calls": value}, "tool_calls is") for value in ({}, {"name": "f"}, "f", 0, False)),
        (ANSWER | {"tool_calls": [CALL | {"id": 7}]}, "for the id of a call"),
        (ANSWER | {"tool_calls": [CALL | {"function": {"name": "f", "arguments": {"at": b"1"}}}]}, "not JSON"),
    ],
)
def test_a_value_of_another_type_is_refused_and_not_ignored(turn: dict[str, Any], said: str) -> None:
    """Otherwise a model is trained without thoughts or calls that its rows have."""
    found = problem({"messages": [USER, turn, USER, ANSWER]})
    assert (found.reason, found.column, found.effect) == ("WRONG_TYPE", "messages[1]", "refuses")
    assert said in found.message


def test_a_tool_with_a_value_that_is_no_json_is_refused() -> None:
    """Otherwise a table with a timestamp in its tools ends the validation with a crash."""
    found = problem(CHAT | {"tools": [{"name": "f", "since": b"2020"}]})
    assert (found.reason, found.column) == ("WRONG_TYPE", "tools")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [USER, ANSWER | {"value": "Four."}]}, "content and value"),
        ({"messages": [USER, ANSWER | {"from": "human"}]}, "role and from"),
        ({"messages": [USER, ANSWER | {"reasoning": "Hm.", "thinking": "Oh."}]}, "reasoning and thinking"),
        (
            {"messages": [USER, ANSWER | {"thinking": "Hm.", "content": [{"type": "thinking", "thinking": "Oh."}]}]},
            "reasoning and a part",
        ),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [CALL], "function_call": {"name": "g"}}]},
            "tool_calls and function_call",
        ),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [{"name": "f", "arguments": {"a": 1}, "parameters": {}}]}]},
            "arguments and parameters",
        ),
        ({"messages": [USER, ANSWER], "tools": [{"name": "f"}], "functions": [{"name": "g"}]}, "tools and functions"),
    ],
)
def test_two_values_for_one_thing_refuse_the_row(row: dict[str, Any], said: str) -> None:
    """Otherwise one of two answers or thoughts is trained, and nobody knows which."""
    found = problem(row)
    assert (found.reason, found.effect) == ("CONTRADICTORY_KEYS", "refuses")
    assert said in found.message


def test_the_same_value_under_two_keys_is_read_once() -> None:
    both = ANSWER | {"from": "gpt", "value": "Three.", "reasoning": "Hm.", "thinking": "Hm.", "tool_calls": [CALL]}
    found = example({"messages": [USER, both | {"function_call": CALL["function"]}, USER, ANSWER]})
    assert found.messages[1] == ANSWER | {"reasoning_content": "Hm.", "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("row", "unused"),
    [
        (CHAT | {"id": 3, "source": "web", "none": None, "system": "Be brief."}, ["id", "source"]),
        (QA | {"tools": [{"name": "f"}], "input": "Oh."}, ["input", "tools"]),
        ({"messages": [USER, ANSWER], "conversations": [USER, ANSWER]}, ["conversations"]),
        ({"text": "Once", "system": "Be brief."}, ["system"]),
        (
            {"messages": [USER | {"id": "t1"}, ANSWER | {"label": "fact", "weight": 1}]},
            ["messages[].id", "messages[].label"],
        ),
        (
            {"messages": [USER | {"thinking": "Hm.", "tool_call_id": "c"}, ANSWER]},
            ["messages[].thinking", "messages[].tool_call_id"],
        ),
        ({"conversations": [USER, ANSWER | {"refusal": "No."}]}, ["conversations[].refusal"]),
        (
            {"messages": [USER, ANSWER | {"tool_calls": [CALL | {"index": 1, "type": "custom"}]}]},
            ["messages[].tool_calls[].index", "messages[].tool_calls[].type"],
        ),
        (
            {"messages": [USER, ANSWER | {"content": [{"type": "text", "text": "Oh.", "citations": ["web"]}]}]},
            ["messages[].content[].citations"],
        ),
        ({"prompt": [USER], "completion": [ANSWER], "tools": []}, []),
        (TEXT | {"tools": [{"name": "f"}]}, ["tools"]),
    ],
)  # fmt: skip
def test_values_that_are_not_used_are_named(row: dict[str, Any], unused: list[str]) -> None:
    """Otherwise a column with a typing error in its name is left out, and nobody sees it."""
    reader = RowReader({}, None)
    *_, last = reader.read(Row(1, row))
    assert isinstance(last, Example), last
    assert reader.unused == unused
    warning = reader.unused_keys()
    assert (warning is None) == (not unused)
    if warning:
        assert (warning.row, warning.reason, warning.effect) == (0, "UNUSED_KEYS", "warns")
        assert all(name in warning.message for name in unused)


def test_a_mapped_column_is_named_as_in_the_file() -> None:
    """A mapping replaces a column of the file; the replaced one is not used."""
    reader = RowReader({"answer": "reply", "label": "kind"}, None)
    *_, last = reader.read(Row(1, {"question": "Why?", "reply": "So.", "answer": "Old.", "kind": "fact"}))
    assert isinstance(last, Example)
    assert last.expected_output == "So."
    assert reader.unused == ["answer", "kind"]


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
@pytest.mark.parametrize("turn", [{"content": None}, {}])
def test_a_turn_without_content_leaves_its_row_out(role: str, turn: dict[str, Any]) -> None:
    """One of them in a large file is no reason to refuse all of it."""
    before = [] if role == "system" else [USER] if role == "user" else [USER, calling({})]
    found = problem({"messages": [*before, {"role": role, **turn}, USER, ANSWER]})
    assert (found.reason, found.effect) == ("EMPTY_VALUE", "leaves_out")


def test_a_row_without_one_of_its_columns_is_left_out_and_one_without_all_refuses() -> None:
    """Writers of JSON leave null out; a row with none of the columns is of another file."""
    reader = RowReader({}, None)
    assert isinstance(next(reader.read(Row(1, QA))), Example)
    found = [next(reader.read(Row(2, row))) for row in ({"question": "Q"}, {"query": "Q"})]
    assert [(one.reason, one.effect) for one in found if isinstance(one, RowProblem)] == [
        ("NO_ANSWER", "leaves_out"), ("MISSING_COLUMN", "refuses"),
    ]  # fmt: skip


@pytest.mark.parametrize("role", ["system", "developer"])
def test_system_turns_at_the_front_are_joined_with_a_warning(role: str) -> None:
    """Nothing that they say is lost, and what is trained stays where it is."""
    systems = [{"role": "system", "content": "Be short."}, {"role": role, "content": "Be kind."}]
    warned, found = items({"messages": [*systems, USER, ANSWER | {"train": False}, USER, ANSWER]})
    assert isinstance(warned, RowProblem)
    assert (warned.reason, warned.effect) == ("JOINED_SYSTEM_TURNS", "warns")
    assert isinstance(found, Example)
    assert found.messages[0] == {"role": "system", "content": "Be short.\n\nBe kind."}
    assert found.untrained == {2}
    *_, asked = items({"prompt": [*systems, USER], "completion": [ANSWER]})
    assert isinstance(asked, Example)
    assert (asked.answers_from, asked.messages[-1]) == (2, ANSWER)


def test_a_system_column_beside_a_system_turn_is_warned_of() -> None:
    own = {"role": "system", "content": "Be short."}
    warned, found = items({"messages": [own, USER, ANSWER], "system": "Be kind."})
    assert isinstance(warned, RowProblem)
    assert (warned.reason, warned.effect) == ("UNUSED_SYSTEM", "warns")
    assert isinstance(found, Example)
    assert found.messages[0] == own
    assert len(items({"messages": [own, USER, ANSWER], "system": "Be short."})) == 1


def test_a_turn_without_a_role_is_told_so() -> None:
    for turn, said in (({"user": "a"}, "(it has user)"), ({"role": None, "content": "a"}, "has no role;")):
        found = problem({"messages": [turn, ANSWER]})
        assert found.reason == "MISSING_ROLE"
        assert said in found.message
        assert "None" not in found.message


@pytest.mark.parametrize(
    "cell",
    [
        str([USER, ANSWER]),
        f"[{USER}\n {ANSWER}]",
        '[{"role": "user", "content": None}]',
        '[{"role": "user", "x": True}]',
    ],
)
def test_a_cell_in_the_notation_of_python_is_told_what_it_is(cell: str) -> None:
    for row in ({"messages": cell}, {"prompt": cell, "completion": "A"})[: 2 if "'" in cell else 1]:
        found = problem(row)
        assert found.reason == "NOT_JSON"
        assert "Python's notation; write it with json.dumps" in found.message
