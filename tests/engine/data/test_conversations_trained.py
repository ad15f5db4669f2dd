"""From a file to trained tokens: every answer once with its end, nothing else; a finding for what is left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.data.files import read_rows
from engine.data.formats import Example, RowReader
from engine.data.rows import RowProblem
from engine.data.spans import IGNORED, tokens_of_all, whole_text
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from tests.engine.data.chat_templates import TEMPLATES
from tests.tiny_models import make_tiny_tokenizer

END = "<|im_end|>"
Turn = dict[str, Any]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {
        name: Tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp(name), chat_template=template))
        for name, template in TEMPLATES.items()
    }


def trained_tokens(
    rows: list[Turn], tokenizer: Tokenizer, folder: Path, system_prompt: str | None = None
) -> tuple[list[str], set[str], str]:
    """Texts of the runs of trained tokens of all rows, the reasons of all findings, and the whole text."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = RowReader({}, system_prompt)
    items: list[Example | RowProblem] = []
    for row in read_rows(path, 100_000):
        items += [row] if isinstance(row, RowProblem) else list(reader.read(row))
    reasons = {item.reason for item in items if not isinstance(item, Example)}
    examples = [item for item in items if isinstance(item, Example)]
    runs: list[str] = []
    written = ""
    for example, tokens in zip(examples, tokens_of_all(examples, tokenizer, "response", 100_000), strict=True):
        if isinstance(tokens, JobError):
            reasons.add(tokens.reason)
            continue
        reasons |= {finding.reason for finding in tokens.findings}
        if not tokens.trains:
            reasons.add("NO_TRAINED_TOKENS")
        written += whole_text(example, tokenizer)
        assert written.endswith(tokenizer.decode(tokens.input_ids.tolist()))
        run: list[int] = []
        for label in [*tokens.labels.tolist(), IGNORED]:
            if label != IGNORED:
                run.append(label)
            elif run:
                runs.append(tokenizer.decode(run))
                run = []
    return runs, reasons, written


def chat(*turns: Turn, **more: Any) -> list[Turn]:
    return [{"messages": list(turns), **more}]


def user(content: str) -> Turn:
    return {"role": "user", "content": content}


def answer(content: str | None, **more: Any) -> Turn:
    return {"role": "assistant", "content": content, **more}


TWO = chat(user("Where is Bern?"), answer("In Switzerland."), user("And Graz?"), answer("In Austria."))
THOUGHTS = chat(user("2+2?"), answer("4.", reasoning="Two."), user("3+3?"), answer("6.", thinking="Three."))
TOOL = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


@pytest.mark.parametrize(
    ("template", "rows", "runs", "reasons"),
    [
        ("markshort", TWO, ["In Switzerland." + END, "In Austria." + END], set()),
        ("thinker", TWO, ["In Switzerland." + END, "<think>\n\n</think>\n\nIn Austria." + END], {"ANSWERS_REWRITTEN"}),
        (
            "thinker",
            THOUGHTS,
            ["<think>\nThree.\n</think>\n\n6." + END],
            {"ANSWERS_NOT_TRAINED", "THOUGHT_NOT_WRITTEN"},
        ),
        ("chatml", THOUGHTS, ["4." + END, "6." + END], {"THOUGHT_NOT_WRITTEN"}),
        ("chatml", chat(user("Hi"), answer("Hello.", reasoning_content=" ")), ["Hello." + END], set()),
        (
            "thinker",
            chat(
                user("2+2?"),
                answer(None) | {"content": [{"type": "thinking", "thinking": "Two."}, {"type": "text", "text": "4."}]},
            ),
            ["<think>\nTwo.\n</think>\n\n4." + END],
            set(),
        ),
        (
            "syslast",
            chat({"role": "system", "content": "Short."}, *TWO[0]["messages"]),
            ["In Switzerland." + END, "In Austria." + END],
            {"ANSWERS_REWRITTEN"},
        ),
        (
            "nosys",
            chat({"role": "system", "content": "Hi"}, user("Hi"), answer("Hi")),
            ["Hi" + END],
            {"SYSTEM_NOT_WRITTEN"},
        ),
        (
            "nosys",
            chat(user("Bern?"), answer("I look."), {"role": "tool", "content": "Rain."}, answer("It rains.")),
            [],
            {"TEMPLATE_WITHOUT_TOOLS"},
        ),
        ("chatml", chat(user("Hi"), answer("Hello."), tools=TOOL), ["Hello." + END], {"TOOLS_NOT_WRITTEN"}),
        ("chatml", chat(user("Hi"), answer("Hello.", name="Ann")), ["Hello." + END], {"NAME_NOT_WRITTEN"}),
        ("chatml", chat(user("Hi"), answer("Hello." + END)), ["Hello." + END], set()),
        ("chatml", chat(user("Hi"), answer(END)), [], {"EMPTY_VALUE"}),
        ("chatml", chat(user("Hi"), answer(END + END + "Oh.")), [END + END + "Oh." + END], set()),
        ("thinker", chat(user("Hi"), answer("Hello.<think>\n</think>\n")), [], {"TEMPLATE_FAILED"}),
        ("chatml", [{"prompt": "Q\n", "completion": "yes" + END}], ["yes" + END], set()),
        ("chatml", [{"text": "A line." + END + "\n"}], ["A line." + END + "\n"], set()),
    ],
)
def test_answers_are_trained_with_their_ends_and_what_is_left_out_is_named(
    tokenizers: dict[str, Tokenizer],
    tmp_path: Path,
    template: str,
    rows: list[Turn],
    runs: list[str],
    reasons: set[str],
) -> None:
    """A thought, system text or end that is lost without a word makes a model that does not do what its data shows."""
    assert trained_tokens(rows, tokenizers[template], tmp_path)[:2] == (runs, reasons)


def test_a_system_prompt_that_the_template_leaves_out_is_named(
    tokenizers: dict[str, Tokenizer], tmp_path: Path
) -> None:
    """The job's own system_prompt would do nothing."""
    rows = [{"question": "Hi", "answer": "Oh my."}]
    runs, reasons, _ = trained_tokens(rows, tokenizers["nosys"], tmp_path, "Rhyme.")
    assert (runs, reasons) == (["Oh my." + END], {"SYSTEM_NOT_WRITTEN"})
