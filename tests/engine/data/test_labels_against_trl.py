"""Compares the trained tokens with the labels that TRL makes of the same rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.data.formats import Example, RowReader
from engine.data.rows import Row
from engine.data.spans import tokens_of
from engine.data.tokenizer import Tokenizer
from engine.model.materialise import materialise, packaged_gguf
from tests.tiny_models import make_tiny_model, make_tiny_tokenizer

pytestmark = pytest.mark.long

MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{{ '\n' }}{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML, with the answers marked as TRL wants them for assistant_only_loss."""
WIDELY_MARKED = MARKED.replace("'<|im_end|>' }}{% endgeneration %}{{ '\n' }}", "'<|im_end|>\n' }}{% endgeneration %}")
"""A template marked as in TRL's Qwen templates: the line break after a turn is trained as well."""

PAIRS = [
    {"prompt": "The answer is", "completion": " 42."},
    {"prompt": "def f(x):\n", "completion": "    return x + 1\n"},
    {"prompt": "Ünïcode ☃?", "completion": " Yes, 🎉 indeed"},
]
CHATS = [
    [("user", "How many apples?"), ("assistant", "Two.")],
    [("system", "Brief."), ("user", "Why?\n"), ("assistant", "So.\n\nIt is."), ("user", "Ok"), ("assistant", "No")],
    [("user", "1 + 1?"), ("assistant", "2"), ("user", "2 + 2?"), ("assistant", "4 🎉")],
]
SPACED = [("user", "1 + 1?"), ("assistant", " 2")]
"""A turn with a leading space, which gets no token from transformers if the tokenizer trims offsets, as here."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    smollm2 = tmp_path_factory.mktemp("smollm2") / "model"
    materialise(packaged_gguf(), smollm2, weights=False)
    return {"tiny": make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")), "smollm2": smollm2}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


def of_trl(rows: list[dict[str, Any]], tokenizer_dir: Path, model_dir: Path, **config: Any) -> list[dict[str, Any]]:
    """Ids and labels as TRL's trainer prepares and collates these rows, one by one: no padding."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    if "chat_template" in config:
        tokenizer.chat_template = config.pop("chat_template")
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    model.resize_token_embeddings(max(len(tokenizer), 384))
    arguments = SFTConfig(
        output_dir=str(model_dir / "out"),
        max_length=512,
        report_to="none",
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        **config,
    )
    trainer = SFTTrainer(model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    prepared = trainer.train_dataset
    batches = [trainer.data_collator([row]) for row in prepared]
    return [{name: batch[name][0].tolist() for name in ("input_ids", "labels")} for batch in batches]


def ours(row: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    (example,) = RowReader({}, None).read(Row(1, row))
    assert isinstance(example, Example)
    tokens = tokens_of(example, tokenizer, "response", 512)
    return {"input_ids": tokens.input_ids.tolist(), "labels": tokens.labels.tolist()}


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_prompt_and_completion_rows_are_labelled_as_by_trl(
    name: str, folders: dict[str, Path], model_dir: Path
) -> None:
    """completion_only_loss: the completion and the end after it, and not one token of the prompt."""
    theirs = of_trl(PAIRS, folders[name], model_dir, completion_only_loss=True)
    tokenizer = Tokenizer(folders[name])
    assert [ours(row, tokenizer) for row in PAIRS] == theirs


@pytest.mark.parametrize("name", ["tiny", "smollm2"])
def test_conversations_are_labelled_as_by_trl(name: str, folders: dict[str, Path], model_dir: Path) -> None:
    """assistant_only_loss with a template that marks the answers; ours finds them without marks."""
    chats = [*CHATS, SPACED] if name == "smollm2" else CHATS
    rows = [{"messages": [{"role": role, "content": content} for role, content in chat]} for chat in chats]
    assert WIDELY_MARKED != MARKED
    widely = of_trl(rows, folders[name], model_dir, assistant_only_loss=True, chat_template=WIDELY_MARKED)
    assert [ours(row, Tokenizer(folders[name], WIDELY_MARKED)) for row in rows] == widely
    theirs = of_trl(rows, folders[name], model_dir, assistant_only_loss=True, chat_template=MARKED)
    tokenizer = Tokenizer(folders[name], MARKED)
    assert [ours(row, tokenizer) for row in rows] == theirs
    plain = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    unmarked = Tokenizer(folders[name], plain)
    assert [ours(row, unmarked) for row in rows] == theirs


def test_trl_also_trains_the_newline_after_the_end_of_a_completion(folders: dict[str, Path], model_dir: Path) -> None:
    """docs/benchmarks.md says so of the script whose losses it compares with ours."""
    turns = {"prompt": [{"role": "user", "content": "1 + 1?"}], "completion": [{"role": "assistant", "content": "2"}]}
    (theirs,) = of_trl([turns], folders["smollm2"], model_dir, completion_only_loss=True)
    tokenizer = Tokenizer(folders["smollm2"])
    found = ours(turns, tokenizer)
    trained = [[token for token in each["labels"] if token != -100] for each in (theirs, found)]
    assert [tokenizer.decode(tokens) for tokens in trained] == ["2<|im_end|>\n", "2<|im_end|>"]
    assert theirs["input_ids"] == found["input_ids"]


def test_ids_are_those_of_the_models_own_tokenizer(folders: dict[str, Path]) -> None:
    """The probe tokenises without torch; the class that the trainer loads must say the same."""
    from transformers import AutoTokenizer

    texts = [
        "Hello, world!\n",
        " two  spaces",
        "🎉 é ☃ 漢字",
        "<|im_start|>user\nHi<|im_end|>\n",
        "a\tb\r\nc",
        "1234567890",
    ]
    for folder in folders.values():
        theirs = AutoTokenizer.from_pretrained(folder)
        tokenizer = Tokenizer(folder)
        for text in texts:
            assert tokenizer.encode(text).ids == theirs(text, add_special_tokens=False)["input_ids"], json.dumps(text)
