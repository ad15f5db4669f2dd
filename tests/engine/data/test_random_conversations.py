"""From a file to its token shards, for random conversations: exactly the answers are trained, and a finding names the
rest."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.config.job import job_config
from engine.data.prepare import prepare
from engine.data.shards import read_shards
from engine.data.spans import IGNORED
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError
from tests.engine.data.chat_templates import TEMPLATES
from tests.tiny_models import make_tiny_tokenizer

END = "<|im_end|>"
WORD = re.compile(r"word\d+w")
CONTROL = (END, "<|im_start|>", "<|endoftext|>")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
Turn = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """A text of a row: words that no other text has, with anything around them."""

    words: tuple[str, ...]
    written: str


@dataclass
class Written:
    """A turn, and the texts in it by kind: content, thought or call."""

    role: str
    given: Turn
    texts: dict[str, list[Text]] = field(default_factory=dict)
    trained: bool = True

    def words(self, *kinds: str) -> list[str]:
        return [word for kind in kinds or self.texts for text in self.texts.get(kind, ()) for word in text.words]


@dataclass
class Conversation:
    """A row of a file."""

    turns: list[Written]
    system: list[Text]
    """Text of the column `system`."""
    tools: list[Text]
    values: dict[str, Any]
    ending: str


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: make_tiny_tokenizer(tmp_path_factory.mktemp(name), chat_template=template)
        for name, template in TEMPLATES.items()
    }


_AROUND = st.sampled_from(
    [
        *[""] * 8,
        *CONTROL,
        *(" ", "\n", "é 🎉", " and\n\nmore ", "\u200b", '"q"', "\\", "{{ x }}", "{% x %}", "<b>", "[INST]", "zq0b"),
        *("<think>", "</think>", "<think>\n\n</think>\n\n", "<call>", "</result>", "### Answer:\n"),
        *("<|im_start|>assistant\n", END + "\n" + END),
    ]
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Conversations that a file may have, most of them ones that can be trained."""
    count = 0

    def text() -> Text:
        nonlocal count
        count += 2
        words = (f"word{count}w", f"word{count + 1}w")
        return Text(words, draw(_AROUND) + words[0] + draw(_AROUND) + words[1] + draw(_AROUND))

    def rarely() -> bool:
        return draw(st.integers(0, 7)) == 7

    def turn(role: str) -> Written:
        made = Written(role, {"role": role}, trained=role == "assistant")
        if role == "assistant" and calls_tools and draw(st.booleans()):
            made.given["tool_calls"] = [call(made) for _ in range(draw(st.integers(1, 2)))]
        if rarely() and (has_blank_turns or "tool_calls" in made.given):
            made.given["content"] = draw(st.sampled_from(["", None, " \n"]))
        else:
            made.texts["content"] = [text()]
            made.given["content"] = made.texts["content"][0].written
            if rarely():
                made.given["content"] = [{"type": "text", "text": made.given["content"]}]
        if role == "assistant" and draw(st.integers(0, 2)) == 2:
            made.texts["thought"] = [text()]
            made.given[draw(st.sampled_from(THOUGHTS))] = made.texts["thought"][0].written
        elif rarely():
            made.given[draw(st.sampled_from(THOUGHTS))] = draw(st.sampled_from([None, "", "\n"]))
        if role == "assistant" and draw(st.integers(0, 3)) == 3:
            made.given |= draw(st.sampled_from([{"weight": 0}, {"train": False}, {"weight": 1}, {"weight": None}]))
            made.trained = made.given.get("weight") != 0 and made.given.get("train") is not False
        return made

    def call(made: Written) -> Turn:
        said = [text(), text()]
        made.texts["call"] = made.texts.get("call", []) + said
        arguments: Any = {"at": said[0].written, "none": None, "deep": [{"in": said[1].written}, None]}
        arguments = json.dumps(arguments) if draw(st.booleans()) else arguments
        function = {"name": "look", "arguments": arguments}
        return draw(st.sampled_from([{"type": "function", "id": "c1", "function": function}, function]))

    has_blank_turns, calls_tools = rarely(), draw(st.integers(0, 2)) == 2
    turns = [turn("system") for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2])))]
    for _ in range(draw(st.integers(1, 3))):
        turns.append(turn("user"))
        turns.append(turn("assistant"))
        while "call" in turns[-1].texts and not rarely():
            turns += [turn("tool") for _ in turns[-1].given["tool_calls"]]
            turns.append(turn("assistant"))
    if rarely():
        turns.insert(draw(st.integers(0, len(turns))), turn(draw(st.sampled_from(["user", "assistant", "tool"]))))
    values: dict[str, Any] = {"messages": [one.given for one in turns]}
    if draw(st.booleans()):
        values = {"conversations": [sharegpt(one.given) for one in turns]}
    system = [text() for _ in range(rarely())]
    if system:
        values["system"] = system[0].written
    if rarely():
        values[draw(st.sampled_from(["id", "sytem"]))] = "unused"
    tools = [text() for _ in range(draw(st.sampled_from([0, 0, 1, 2])))]
    schemas = [
        {"name": text.words[0], "description": text.written.replace(text.words[0], ""), "parameters": {"a": None}}
        for text in tools
    ]
    if draw(st.booleans()):
        values["functions"] = schemas
    else:
        values["tools"] = [{"type": "function", "function": schema} for schema in schemas] or draw(
            st.sampled_from([None, "", []])
        )
    return Conversation(turns, system, tools, values, draw(st.sampled_from(["jsonl", "json", "parquet"])))


def sharegpt(turn: Turn) -> Turn:
    """Returns a turn in the notation of ShareGPT."""
    roles = {"user": "human", "assistant": "gpt", "tool": "observation"}
    named = {"role": "from", "content": "value"}
    return {named.get(key, key): roles.get(value, value) if key == "role" else value for key, value in turn.items()}


def write(row: Conversation, folder: Path) -> Path:
    path = folder / f"rows.{row.ending}"
    if row.ending == "parquet":
        try:
            table = pa.Table.from_pylist([row.values])
        except pa.ArrowInvalid:
            # Turns of different types fit into a table only as text.
            table = pa.Table.from_pylist([{name: json.dumps(value) for name, value in row.values.items() if value}])
        pq.write_table(table, path)
    else:
        path.write_text(json.dumps([row.values] if row.ending == "json" else row.values) + "\n")
    return path


def runs_of(labels: list[int], tokenizer: Tokenizer) -> Iterator[str]:
    """Yields the text of each run of trained tokens."""
    run: list[int] = []
    for label in [*labels, IGNORED]:
        if label != IGNORED:
            run.append(label)
        elif run:
            yield tokenizer.decode(run)
            run = []


def kept_turns(row: Conversation) -> tuple[int, int]:
    """Returns the index of the first question, and the index after the last answer."""
    roles = [turn.role for turn in row.turns]
    return roles.index("user"), len(roles) - roles[::-1].index("assistant")


def check_refusal(row: Conversation, template: str, reasons: set[str]) -> None:
    """Checks that the row gives cause for one of the reasons for which the data is refused."""
    first, end = kept_turns(row)
    is_empty = any(
        not turn.words("content", "call") and (turn.role in ("user", "assistant") or turn.given["content"] is None)
        for turn in row.turns
    )
    uses_tools = any(turn.role == "tool" or "call" in turn.texts for turn in row.turns)
    causes = {
        "EMPTY_VALUE": is_empty,
        "NO_ANSWER": end <= first,
        "MISPLACED_SYSTEM": any(
            before.role != "system" and turn.role == "system" for before, turn in itertools.pairwise(row.turns)
        ),
        "TEMPLATE_WITHOUT_TOOLS": template != "tools" and uses_tools,
        "TEMPLATE_FAILED": template == "thinker" and any(map(is_split, row.turns)),
        "TEMPLATE_NOT_INCREMENTAL": template in ("thinker", "syslast"),
        "NO_TRAINED_TOKENS": not any(turn.trained for turn in row.turns[first:end]),
    }
    assert any(causes.get(reason) for reason in reasons)


def check_trained(row: Conversation, template: str, runs: list[str], reasons: set[str]) -> None:
    """Checks that each run of trained tokens is one whole answer with its end, and that no answer is missing."""
    first, end = kept_turns(row)
    trained = [turn for turn in row.turns[first:end] if turn.trained]
    found = []
    for run in runs:
        words = WORD.findall(run)
        (turn,) = (turn for turn in row.turns if set(words) & set(turn.words()))
        assert len(set(words)) == len(words)
        assert set(words) <= set(turn.words())
        assert set(words) >= set(turn.words("content", "call")) or "TURN_NOT_WRITTEN" in reasons
        assert set(words) >= set(turn.words("thought")) or "THOUGHT_NOT_WRITTEN" in reasons
        if "TURN_NOT_WRITTEN" not in reasons and not (template == "thinker" and is_split(turn)):
            assert content_of(turn) in run
        for call in turn.given.get("tool_calls", ()):
            arguments = call.get("function", call)["arguments"]
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            # Parquet stores no null in objects.
            assert json.dumps(arguments, ensure_ascii=False) in run or row.ending == "parquet"
        texts = [text.written for texts in turn.texts.values() for text in texts if text.words[0] in words]
        repeated = given_content(turn).count(END) - content_of(turn).count(END)
        assert run.count(END) == "".join(texts).count(END) - repeated + 1
        assert run.rstrip().endswith(END)
        found.append(turn)
    assert found == [turn for turn in trained if any(turn is one for one in found)]
    assert len(found) == len(trained) or "ANSWERS_NOT_TRAINED" in reasons


def given_content(turn: Written) -> str:
    return "".join(text.written for text in turn.texts.get("content", ()))


def content_of(turn: Written) -> str:
    """Returns an answer's text as it is trained: without ends at its end, because the template adds one."""
    text = given_content(turn).strip()
    while text.endswith(END) and "call" not in turn.texts:
        text = text.removesuffix(END).strip()
    return text


def is_split(turn: Written) -> bool:
    """Returns True if the thinker's template takes the start of a turn's text for a thought, or drops it."""
    return "</think>" in given_content(turn)


def check_findings(row: Conversation, whole: str, reasons: set[str]) -> None:
    """Checks that a finding names each text that is not written, and each control token in a text."""
    first, end = kept_turns(row)
    written = Counter(WORD.findall(whole))
    assert not written or set(written.values()) == {1}
    for index, turn in enumerate(row.turns):
        if turn.role != "system" and not first <= index < end:
            assert not set(turn.words()) & written.keys()
            assert ("LEADING_TURNS" if index < first else "TRAILING_TURNS") in reasons
            continue
        for kind in turn.texts:
            lost = "SYSTEM_NOT_WRITTEN" if turn.role == "system" else "TURN_NOT_WRITTEN"
            lost = "THOUGHT_NOT_WRITTEN" if kind == "thought" else lost
            assert set(turn.words(kind)) <= written.keys() or lost in reasons
        if any(token in text.written for texts in turn.texts.values() for text in texts for token in CONTROL):
            assert "CONTROL_TOKEN" in reasons
    for text in row.system:
        unused = "UNUSED_SYSTEM" in reasons
        assert set(text.words) <= written.keys() or unused or "SYSTEM_NOT_WRITTEN" in reasons
        if any(token in text.written for token in CONTROL):
            assert unused or "CONTROL_TOKEN" in reasons
    if {"id", "sytem"} & row.values.keys():
        assert "UNUSED_KEYS" in reasons
    names = {text.words[0] for text in row.tools}
    assert names <= written.keys() or "TOOLS_NOT_WRITTEN" in reasons
    if any(token in text.written for text in row.tools for token in CONTROL):
        assert "CONTROL_TOKEN" in reasons


@pytest.mark.parametrize("template", TEMPLATES)
@settings(
    max_examples=80,
    deadline=None,
    database=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(row=conversations())
def test_exactly_the_answers_are_trained_and_the_rest_is_named(
    models: dict[str, Path], tmp_path: Path, template: str, row: Conversation
) -> None:
    """Otherwise a model learns something else than its rows say, and no finding tells the user."""
    report = Report()
    config = job_config(
        {
            "base_model": "m",
            "training_data": [{"dataset": "d"}],
            "holdout_fraction": 0.0,
            "hyperparameters": {"max_length": 32768},
        }
    )
    try:
        prepare(config, models[template], {"d": write(row, tmp_path)}, tmp_path / "out", lambda *_: None, report)
    except JobError as error:
        check_refusal(row, template, {problem.reason for problem in report.problems} | {error.reason})
        return
    (tokens,) = read_shards(tmp_path / "out" / "train")
    tokenizer = Tokenizer(models[template])
    assert all(label in (IGNORED, id_) for id_, label in zip(tokens["input_ids"], tokens["labels"], strict=True))
    reasons = {problem.reason for problem in report.problems}
    whole = tokenizer.decode(tokens["input_ids"])
    check_trained(row, template, list(runs_of(tokens["labels"], tokenizer)), reasons)
    check_findings(row, whole, reasons)
