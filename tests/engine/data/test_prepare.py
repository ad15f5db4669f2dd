"""From rows to shards: nothing is lost, counted twice or leaked, and bad rows are named."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import psutil
import pytest

from engine.config.job import job_config
from engine.data.blocks import BlockSize
from engine.data.packing import PackCount
from engine.data.prepare import Prepared, prepare
from engine.data.row_numbers import row_names
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError
from tests.engine.data.test_row_templates import ENDLESS
from tests.tiny_models import make_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Bench:
    """Prepares rows that are given as objects or as raw text."""

    def __init__(self, tokenizer_dir: Path, folder: Path) -> None:
        self.tokenizer_dir, self.folder = tokenizer_dir, folder

    def run(self, rows: Any, evaluation: Any = None, **spec: Any) -> Prepared:
        sources = {"ds_train": self._file("train", rows)}
        spec.setdefault("training_data", [{"dataset": "ds_train"}])
        if evaluation is not None:
            sources["ds_eval"] = self._file("eval", evaluation)
            spec.setdefault("evaluation_data", [{"dataset": "ds_eval"}])
        config = job_config({"base_model": "m", **spec})
        return prepare(config, self.tokenizer_dir, sources, self.folder / "out", lambda _phase, _fraction: None)

    def refused(self, rows: Any, **spec: Any) -> JobError:
        with pytest.raises(JobError) as caught:
            self.run(rows, **spec)
        return caught.value

    def shard(self, name: str) -> list[dict[str, list[int]]]:
        return list(datasets.load_from_disk(str(self.folder / "out" / name)))

    def eval_rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "out" / "eval_rows.jsonl").read_text().splitlines()]

    def _file(self, name: str, rows: Any) -> Path:
        path = self.folder / f"{name}.jsonl"
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        path.write_text(text)
        return path


@pytest.fixture
def bench(tokenizer_dir: Path, tmp_path: Path) -> Bench:
    return Bench(tokenizer_dir, tmp_path)


QA = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(40)]


def test_rows_are_split_once_and_for_all(bench: Bench) -> None:
    """The held-out tenth is exact, never trained on, and the same for the same seed whatever the order of rows."""
    prepared = bench.run(QA)
    assert (prepared.train.num_examples, prepared.eval.num_examples) == (36, 4)
    held_out = {row["instruction"] for row in bench.eval_rows()}
    trained = {tuple(row["input_ids"]) for row in bench.shard("train")}
    assert trained.isdisjoint(tuple(row["input_ids"]) for row in bench.shard("eval"))
    bench.run(QA[::-1])
    assert {row["instruction"] for row in bench.eval_rows()} == held_out
    bench.run(QA, seed=7)
    assert {row["instruction"] for row in bench.eval_rows()} != held_out


def test_training_rows_keep_the_numbers_that_their_owner_knows(bench: Bench) -> None:
    """A warning about row 12 of a shuffled, deduplicated and divided set would lead to another row of the file."""
    rows = [*QA[:10], *QA[:5], *QA[10:]]
    bench.run(rows)
    config = job_config({"base_model": "m", "training_data": [{"dataset": "ds_1"}]})
    out, tokenizer = bench.folder / "out", Tokenizer(bench.tokenizer_dir)
    shard = bench.shard("train")
    names = row_names(out, config, range(len(shard)))
    assert len(names) == 36
    for name, row in zip(names, shard, strict=True):
        number = int(name.removeprefix("training_data[0] row "))
        assert rows[number - 1]["question"] in tokenizer.decode(row["input_ids"])


def test_duplicates_are_dropped_before_the_split(bench: Bench) -> None:
    """A copy of a training row in the held-out rows would flatter the evaluation."""
    prepared = bench.run([row for row in QA for _ in range(3)])
    assert prepared.train.num_duplicates == 80
    assert prepared.train.num_examples + prepared.eval.num_examples == 40


def test_evaluation_data_is_used_as_it_is_and_overlap_is_counted(bench: Bench) -> None:
    prepared = bench.run(QA, evaluation=[*QA[:2], {"question": "New?", "answer": "Yes."}])
    assert (prepared.train.num_examples, prepared.eval.num_examples, prepared.num_leaked) == (40, 3, 2)


def test_at_most_max_samples_are_used_of_what_the_split_left(bench: Bench) -> None:
    """A trial on a part of the data is comparable only if it holds out the same rows."""
    whole = bench.run(QA)
    held_out = {tuple(row["input_ids"]) for row in bench.shard("eval")}
    every = {tuple(row["input_ids"]) for row in bench.shard("train")}
    bench.run(QA, training_data=[{"dataset": "ds_train", "max_samples": 10, "weight": 1.5}])
    assert {tuple(row["input_ids"]) for row in bench.shard("eval")} == held_out
    times = Counter(tuple(row["input_ids"]) for row in bench.shard("train"))
    assert set(times) < every
    assert sorted(times.values()) == [1] * 5 + [2] * 5
    assert bench.run(QA, training_data=[{"dataset": "ds_train", "max_samples": 10_000}]).train == whole.train
    prepared = bench.run(QA, evaluation=QA[:5], evaluation_data=[{"dataset": "ds_eval", "max_samples": 2}])
    assert (prepared.train.num_examples, prepared.eval.num_examples) == (40, 2)


def test_at_most_max_tokens_are_trained_of_what_the_split_left(bench: Bench) -> None:
    """A trial with a budget of tokens must hold out the same rows, and not exceed the budget."""
    whole = bench.run(QA)
    held_out = {tuple(row["input_ids"]) for row in bench.shard("eval")}
    every = {tuple(row["input_ids"]) for row in bench.shard("train")}
    budget = whole.train.num_trained_tokens // 3
    prepared = bench.run(QA, training_data=[{"dataset": "ds_train", "max_tokens": budget}])
    assert {tuple(row["input_ids"]) for row in bench.shard("eval")} == held_out
    assert {tuple(row["input_ids"]) for row in bench.shard("train")} < every
    assert 0.7 * budget < prepared.train.num_trained_tokens <= budget
    chosen = {tuple(row["input_ids"]) for row in bench.shard("train")}
    bench.run(QA, training_data=[{"dataset": "ds_train", "max_tokens": budget, "weight": 2}])
    assert Counter(tuple(row["input_ids"]) for row in bench.shard("train")) == dict.fromkeys(chosen, 2)
    assert bench.run(QA, training_data=[{"dataset": "ds_train", "max_tokens": 10**9}]).train == whole.train
    assert bench.run(QA, training_data=[{"dataset": "ds_train", "max_tokens": 1}]).train.num_examples == 1


def test_weights_sample_what_the_split_left(bench: Bench) -> None:
    """A dataset at 2.5 is seen two and a half times, one at 0.5 is not dropped, and nothing held out comes back."""
    files = {}
    for name, number in (("a", 40), ("b", 60)):
        path = files[name] = bench.folder / f"{name}.jsonl"
        rows = [{"question": f"Of {name}, number {n}?", "answer": f"{name}{n}"} for n in range(number)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [{"dataset": "a", "weight": 2.5}, {"dataset": "b", "weight": 0.5}]
    config = job_config({"base_model": "m", "training_data": sources})
    prepared = prepare(config, bench.tokenizer_dir, files, bench.folder / "out", lambda *_: None)
    assert prepared.eval.num_examples == 10
    held_out = {tuple(row["input_ids"]) for row in bench.shard("eval")}
    tokenizer = Tokenizer(bench.tokenizer_dir)
    seen: dict[str, list[int]] = {"a": [], "b": []}
    rows_seen = Counter(tuple(row["input_ids"]) for row in bench.shard("train"))
    assert held_out.isdisjoint(rows_seen)
    for ids, times in rows_seen.items():
        seen["a" if "Of a" in tokenizer.decode(ids) else "b"].append(times)
    left = Counter("a" if "Of a" in tokenizer.decode(ids) else "b" for ids in held_out)
    assert (len(seen["a"]), set(seen["a"])) == (40 - left["a"], {2, 3})
    assert seen["a"].count(3) == round(0.5 * len(seen["a"]))
    assert seen["b"] == [1] * round(0.5 * (60 - left["b"]))
    assert (
        prepared.train.num_examples
        == prepared.phases[0].num_sequences(packing=False)
        == sum(seen["a"]) + sum(seen["b"])
    )
    again = prepare(config, bench.tokenizer_dir, files, bench.folder / "again", lambda *_: None)
    assert again == prepared


def test_without_held_out_rows_there_is_no_eval_shard(bench: Bench) -> None:
    prepared = bench.run(QA, holdout_fraction=0.0)
    assert prepared.train.num_examples == 40
    assert not (bench.folder / "out" / "eval").exists()


@pytest.mark.parametrize(
    ("rows", "name", "prompt"),
    [
        ([{"question": "Q?", "answer": "A", "system": "S"}], "question_answer", "system\nS user\nQ?"),
        ([{"instruction": "Do", "input": "this", "output": "A"}], "instruction", "user\nDo\n\nthis"),
        ([{"instruction": "Do", "input": "", "output": "A", "text": "x"}], "instruction", "user\nDo"),
        ([{"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}], "chat", "user\nQ"),
        ([{"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}], "chat", "user\nQ"),
        ([{"prompt": "2+2=", "completion": "A"}], "prompt_completion", "2+2="),
        (
            [{"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]}],
            "prompt_completion",
            "user\nQ",
        ),
    ],
)  # fmt: skip
def test_each_format_is_recognised_and_none_of_its_columns_ignored(
    bench: Bench, rows: list[dict[str, Any]], name: str, prompt: str
) -> None:
    """A column that is read and dropped (as `input` once was) trains a different task than the one in the file."""
    prepared = bench.run(rows, evaluation=rows)
    assert prepared.train.format == name
    (row,) = bench.eval_rows()
    said = row["prompt"].replace("<|im_start|>", "").replace("<|im_end|>\n", " ").removesuffix("assistant\n").strip()
    assert said == prompt
    assert row["expected_output"] == "A"


def test_a_mapping_names_the_files_columns(bench: Bench) -> None:
    rows = [{"q": "Q?", "question": "not this", "reply": "A"}]
    source = {"dataset": "ds_train", "mapping": {"question": "q", "answer": "reply"}}
    bench.run(rows, training_data=[source], holdout_fraction=0.0)
    assert len(bench.shard("train")) == 1
    source["mapping"] = {"question": "q", "answer": "replies"}
    error = bench.refused([{"q": "Q?", "answer": "A"}], training_data=[source])
    assert (error.reason, error.violations[0].field) == ("UNKNOWN_COLUMN", "spec.training_data[0].mapping.answer")
    optional = {"dataset": "ds_train", "mapping": {"system": "sytem"}}
    error = bench.refused(QA[:3], training_data=[optional])
    assert error.violations[0].field == "spec.training_data[0].mapping.system"


def test_one_row_of_a_table_becomes_three_examples(bench: Bench) -> None:
    """Profiles are no questions; a template makes questions of them."""
    path = bench.folder / "members.csv"
    path.write_text("age,goal\n" + "".join(f'{20 + n},"get strong, {n}"\n' for n in range(10)))
    asked = ",".join(
        f'{{"question": {{{{ ("{what} at " ~ age) | tojson }}}}, "answer": {{{{ goal | tojson }}}}}}'
        for what in ("workout", "nutrition", "advice")
    )
    source = {"dataset": "ds_1", "template": f"[{asked}]"}
    config = job_config({"base_model": "m", "training_data": [source]})
    prepared = prepare(config, bench.tokenizer_dir, {"ds_1": path}, bench.folder / "out", lambda *_: None)
    assert prepared.train.num_examples + prepared.eval.num_examples == 30
    assert "get strong, " in bench.eval_rows()[0]["expected_output"]
    with pytest.raises(JobError, match=r"spec.training_data\[0\].mapping"):
        job_config({"base_model": "m", "training_data": [source | {"mapping": {"question": "age"}}]})


def test_ids_are_trained_on_as_they_are_and_checked_against_the_vocabulary(bench: Bench) -> None:
    """Ids of another tokenizer would train on noise, or crash the embedding hours later."""
    rows = [{"input_ids": [5, 6, 7 + n], "labels": [-100, 6, 7 + n]} for n in range(4)]
    bench.run(rows, holdout_fraction=0.0)
    assert bench.shard("train")[0] == {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
    assert "[ID_OUT_OF_RANGE]" in bench.refused([*rows, {"input_ids": [1, 99_999]}]).violations[0].description


def test_turns_that_are_not_to_be_trained_are_context(bench: Bench) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "wrong", "weight": 0}]
    turns += [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "right"}]
    bench.run([{"messages": turns}], holdout_fraction=0.0)
    labels = [label for label in bench.shard("train")[0]["labels"] if label != -100]
    assert Tokenizer(bench.tokenizer_dir).decode(labels) == "right<|im_end|>"


def test_a_tool_call_that_the_template_leaves_out_is_refused(bench: Bench) -> None:
    """SmolLM2's template writes roles and contents only: the call would be learned as an empty answer."""
    call = {"role": "assistant", "tool_calls": [{"name": "weather", "arguments": {"city": "Oslo"}}]}
    rows = [{"messages": [{"role": "user", "content": "Weather?"}, call]}]
    assert "[TEMPLATE_WITHOUT_TOOLS]" in bench.refused(rows, holdout_fraction=0.0).violations[0].description
    writing = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role + ':' + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    tools = [{"type": "function", "function": {"name": "weather"}}]
    bench.run([rows[0] | {"tools": tools}], holdout_fraction=0.0, chat_template=writing)
    row = bench.shard("train")[0]
    tokenizer = Tokenizer(bench.tokenizer_dir)
    assert tokenizer.decode(row["input_ids"]).startswith('[{"type": "function"')
    trained = tokenizer.decode([label for label in row["labels"] if label != -100])
    assert trained == '{"name": "weather", "arguments": {"city": "Oslo"}}<|im_end|>'


def test_running_text_is_trained_from_beginning_to_end(bench: Bench) -> None:
    """A book cut at max_length would be a book of one page; an end after each page would teach to stop there."""
    book = "".join(f"The answer is {n}, and the question was: how many apples?\n" for n in range(300))
    path = bench.folder / "book.txt"
    path.write_text(book)
    spec = {"training_data": [{"dataset": "ds_1"}], "holdout_fraction": 0.0, "hyperparameters": {"max_length": 128}}
    config = job_config({"base_model": "m", **spec})
    prepared = prepare(config, bench.tokenizer_dir, {"ds_1": path}, bench.folder / "out", lambda *_: None)
    tokenizer = Tokenizer(bench.tokenizer_dir)
    assert prepared.train.num_truncated == 0
    ids = [token for row in bench.shard("train") for token in row["input_ids"]]
    assert tokenizer.decode(ids) == book + tokenizer.eos_token


def test_a_system_prompt_stands_before_conversations_without_one(bench: Bench) -> None:
    rows = [{"question": "Q1", "answer": "A"}, {"question": "Q2", "answer": "A", "system": "Mine."}]
    bench.run(rows, evaluation=rows, system_prompt="Ours.")
    first, second = bench.eval_rows()
    assert first["messages"][0] == {"role": "system", "content": "Ours."}
    assert second["messages"][0] == {"role": "system", "content": "Mine."}
    assert bench.refused([{"text": "plain"}] * 2, system_prompt="Ours.").violations[0].field == "spec.system_prompt"


CALLING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_call_is_expected_as_the_template_writes_it(bench: Bench) -> None:
    """Beside what the model called stood an empty text, as if it should have said nothing."""
    function = {"name": "lamp", "arguments": {"on": True}}
    answers = [
        {"content": None, "tool_calls": [{"function": function}]},
        {"content": "Let me see.", "tool_calls": [{"function": function}]},
        {"content": "No."},
    ]
    question = {"role": "user", "content": "Light?"}
    rows = [{"messages": [question, {"role": "assistant", **answer}]} for answer in answers]
    bench.run(QA, evaluation=rows, chat_template=CALLING)
    call = '<call>{"name": "lamp", "arguments": {"on": true}}</call>'
    assert [row["expected_output"] for row in bench.eval_rows()] == [call, f"Let me see.{call}", "No."]
    assert bench.eval_rows()[0]["prompt"].endswith("assistant\n")


GOOD = '{"question": "Q", "answer": "A"}\n'


@pytest.mark.parametrize(
    ("text", "row", "reason", "said"),
    [
        (GOOD * 16 + '{"question": "Q", }\n', 17, "NOT_JSON", "at column"),
        (GOOD + '\n[1, 2]\n', 3, "NOT_AN_OBJECT", "a JSON array"),
        ('{"question": "Q"}\n', 1, "NO_ANSWER", '--map answer=COLUMN (field mapping.answer of the dataset)'),
        (GOOD + '{"question": "Q", "answer": " "}\n', 2, "NO_ANSWER", "column answer is empty"),
        (GOOD + '{"question": "Q", "answer": null}\n', 2, "NO_ANSWER", "null"),
        (GOOD + '{"question": "Q", "answer": 42}\n', 2, "WRONG_TYPE", "a number (42); write it as a string"),
        (GOOD + '{"question": "Q", "answer": "\\ud800"}\n', 2, "NOT_TEXT", "surrogate"),
        ('{"foo": 1}\n', 1, "UNKNOWN_FORMAT", "it has foo"),
        ('{"messages": "hello"}\n', 1, "WRONG_TYPE", "must be an array"),
        ('{"messages": [{"role": "user", "content": "Q"}]}\n', 1, "NO_ANSWER", "no assistant turn follows"),
        ('{"messages": [{"role": "assistant", "content": "A"}]}\n', 1, "NO_QUESTION", "no turn has the role user"),
        ('{"messages": [{"role": "alien", "content": "Q"}]}\n', 1, "UNKNOWN_ROLE", "'alien'"),
        ('{"a": ' * 100_000 + "\n", 1, "NESTED_TOO_DEEPLY", "not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_with_its_number_and_how_to_mend_it(
    bench: Bench, text: str, row: int, reason: str, said: str
) -> None:
    """Finding row 17 of 40,000 by hand is what the caller is spared."""
    error = bench.refused(text)
    assert error.reason == "BAD_DATA"
    assert error.violations[0].field == f"training_data[0] row {row}"
    assert said in error.violations[0].description
    assert f"[{reason}]" in error.violations[0].description


def test_many_bad_rows_are_counted_and_the_first_ones_shown(bench: Bench) -> None:
    error = bench.refused("nonsense\n" * 500)
    assert "500 rows" in error.message
    assert len(error.violations) == 50


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_an_empty_file_is_refused(bench: Bench, text: str) -> None:
    assert bench.refused(text).reason == "EMPTY_DATASET"


def test_a_file_of_another_kind_is_refused(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_text("question,answer\n")
    config = job_config({"base_model": "m", "training_data": [{"dataset": "d"}]})
    with pytest.raises(JobError, match="jsonl"):
        prepare(config, tokenizer_dir, {"d": tmp_path / "a.xlsx"}, tmp_path / "out", lambda _phase, _fraction: None)


def test_one_row_cannot_be_split(bench: Bench) -> None:
    assert bench.refused(QA[:1]).reason == "TOO_FEW_ROWS"


def test_a_job_whose_answers_are_all_cut_off_is_refused(bench: Bench) -> None:
    """Otherwise it would report loss 0 and succeed without learning anything."""
    rows = [{"question": f"{n} " + "why " * 200, "answer": "So."} for n in range(5)]
    error = bench.refused(rows, hyperparameters={"max_length": 32})
    assert (error.reason, error.violations[0].field) == ("NOTHING_TO_TRAIN", "spec.hyperparameters.max_length")


def test_rows_that_truncation_leaves_without_an_answer_are_dropped_and_counted(bench: Bench) -> None:
    rows = [*QA, {"question": "why " * 200, "answer": "So."}]
    prepared = bench.run(rows, holdout_fraction=0.0, hyperparameters={"max_length": 64})
    assert (prepared.train.num_examples, prepared.train.num_dropped, prepared.train.num_truncated) == (40, 1, 0)


def test_the_content_key_names_what_the_shards_depend_on(bench: Bench) -> None:
    """Equal keys may share shards; a changed template, length or file must not."""
    key = bench.run(QA).content_key
    assert bench.run(QA, hyperparameters={"learning_rate": 0.1}).content_key == key
    assert bench.run(QA, hyperparameters={"packing": True}).content_key == key
    assert bench.run(QA, hyperparameters={"max_length": 64}).content_key != key
    assert bench.run(QA, hyperparameters={"truncation": "drop"}).content_key != key
    assert bench.run(QA, system_prompt="S").content_key != key
    assert bench.run(QA[1:]).content_key != key


def test_packs_are_counted_as_the_trainer_makes_them() -> None:
    """A wrong count would put the end of the learning-rate schedule in the wrong place."""
    from trl import pack_dataset

    lengths = [(n * 37) % 61 + 3 for n in range(1500)]
    rows = datasets.Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    packs = PackCount(64)
    packs.add(lengths[:1234])
    packs.add(lengths[1234:])
    assert packs.num_sequences == len(pack_dataset(rows, 64, "bfd"))


def test_preparing_data_imports_no_torch(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Preflight runs on nodes without torch, and beside serving processes that have no memory for it."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QA))
    code = (
        "import sys; from pathlib import Path\n"
        "from engine.config.job import job_config; from engine.data.prepare import prepare\n"
        "tokenizer, folder = map(Path, sys.argv[1:])\n"
        "config = job_config({'base_model': 'm', 'training_data': [{'dataset': 'd'}]})\n"
        "prepare(config, tokenizer, {'d': folder / 'a.jsonl'}, folder / 'o', lambda *_: None)\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tokenizer_dir), str(tmp_path)], check=True)


def test_several_processes_prepare_what_one_does(tokenizer_dir: Path, tmp_path: Path) -> None:
    """The same shards, rows, counts and report, in the same order: who has more cores trains the same model."""
    lines = [json.dumps({"messages": [{"role": "user", "content": f"What is {n}?"},
                                      {"role": "assistant", "content": f"It is {n}, " * (n % 40 + 1)}]})
             for n in range(300)]  # fmt: skip
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, *lines[:20], lines[7]]))
    table = "".join(f'"How much is {n}?","{n} it is, <|im_end|> or élan 🙂"\n' for n in range(200))
    (tmp_path / "b.csv").write_text(f"question,answer\n{table}")
    sources = {"a": tmp_path / "a.jsonl", "b": tmp_path / "b.csv"}
    spec = {
        "base_model": "m",
        "training_data": [{"dataset": "a", "weight": 1.5}, {"dataset": "b", "weight": 0.5}],
        "hyperparameters": {"max_length": 64},
    }
    found = []
    for processes in (1, 2):
        out, report = tmp_path / f"out{processes}", Report()
        arguments = (job_config(spec), tokenizer_dir, sources, out, lambda *_: None, report, processes)
        prepared = prepare(*arguments, min_bytes=0, block_size=BlockSize(num_bytes=2000, num_rows=30))
        files = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
        found.append((prepared, report.as_dict(), files))
    assert found[0] == found[1]
    assert {"DUPLICATE_ROW", "CONTROL_TOKEN", "TRUNCATED"} <= {count.reason for count in report.counts()}
    assert len(datasets.load_from_disk(str(tmp_path / "out2" / "train"))) > 450


def test_what_breaks_in_another_process_is_told_as_here(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Otherwise a template's fault in a worker process would look like a crash, and a cancel would not end the work."""
    divided: Any = {"processes": 2, "min_bytes": 0, "block_size": BlockSize(num_bytes=500)}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QA))
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    spec = {"base_model": "m", "training_data": [{"dataset": "d"}], "chat_template": template}
    with pytest.raises(JobError) as caught:
        prepare(job_config(spec), tokenizer_dir, {"d": path}, tmp_path / "o", lambda *_: None, **divided)
    assert caught.value.reason == "TEMPLATE_NOT_INCREMENTAL"

    def stop(phase: str, _fraction: float | None) -> None:
        if phase == "tokenising":
            raise KeyboardInterrupt

    del spec["chat_template"]
    with pytest.raises(KeyboardInterrupt):
        prepare(job_config(spec), tokenizer_dir, {"d": path}, tmp_path / "p", stop, **divided)
    assert not [child for child in psutil.Process().children() if "engine.data.processes" in child.cmdline()]


@pytest.mark.long
def test_a_template_that_ends_another_process_is_the_callers(tokenizer_dir: Path, tmp_path: Path) -> None:
    """Taken for a lost worker it would be tried again, and again."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in QA))
    # With a format: until it is known, rows are rendered in this process.
    spec = {"base_model": "m", "training_data": [{"dataset": "d", "format": "text", "template": ENDLESS}]}
    with pytest.raises(JobError) as caught:
        prepare(job_config(spec), tokenizer_dir, {"d": path}, tmp_path / "o", lambda *_: None, processes=2, min_bytes=0)
    assert caught.value.reason == "TEMPLATE_EXCEEDED"


def test_what_becomes_of_long_rows_is_the_callers_choice(bench: Bench) -> None:
    """Otherwise a user could not keep the end of long conversations, or drop documents that would be truncated."""
    long = {"prompt": "Count: ", "completion": "one two three " * 40}
    rows = [*({"prompt": "2 + 2 =", "completion": f" {n}"} for n in range(20)), long]
    cut = {}
    for truncation in ("keep_start", "keep_end", "drop"):
        settings = {"max_length": 32, "truncation": truncation}
        prepared = bench.run(rows, holdout_fraction=0.0, hyperparameters=settings)
        cut[truncation] = bench.shard("train")[20:]
        counted = prepared.train
        dropped = truncation == "drop"
        assert counted.num_examples == 21 - dropped
        assert (counted.num_truncated, counted.num_too_long) == (not dropped, dropped)
    whole = bench.run(rows, holdout_fraction=0.0)
    ids = bench.shard("train")[20]["input_ids"]
    assert whole.train.max_tokens == len(ids) > 32
    assert [row["input_ids"] for row in cut["keep_start"]] == [ids[:32]]
    assert [row["input_ids"] for row in cut["keep_end"]] == [ids[-32:]]
    assert cut["drop"] == []


def test_phases_lie_one_behind_the_other_and_share_one_split(bench: Bench) -> None:
    """A row that one phase holds out and the next one trains on would flatter the evaluation as any other leak."""
    (bench.folder / "easy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*QA[:20], QA[3]]))
    (bench.folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QA))
    sources = {name: bench.folder / f"{name}.jsonl" for name in ("easy", "all")}
    phases = [
        {"training_data": [{"dataset": "easy"}], "num_epochs": 2.0},
        {"training_data": [{"dataset": "all", "weight": 2.0}, {"dataset": "easy"}], "num_epochs": 1.0},
    ]
    config = job_config({"base_model": "m", "phases": phases})
    report = Report()
    prepared = prepare(config, bench.tokenizer_dir, sources, bench.folder / "out", lambda *_: None, report)
    first, second = (phase.train for phase in prepared.phases)
    held_out = {tuple(row["input_ids"]) for row in bench.shard("eval")}
    assert len(held_out) == prepared.eval.num_examples == 4
    shard = [tuple(row["input_ids"]) for row in bench.shard("train")]
    assert held_out.isdisjoint(shard)
    assert (first.num_duplicates, second.num_duplicates) == (1, 21)
    assert second.num_examples == 2 * 36
    assert len(set(shard[: first.num_examples])) == first.num_examples
    assert set(shard[: first.num_examples]) <= set(shard[first.num_examples :])
    assert {problem.source for problem in report.problems} == {
        "phases[0].training_data[0]",
        "phases[1].training_data[1]",
    }
    assert Prepared.read(bench.folder / "out") == prepared
