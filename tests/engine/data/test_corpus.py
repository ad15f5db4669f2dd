"""A streamed corpus: every text once an epoch, in packed sequences, from any position on."""

import gzip
import json
import random
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from engine.config.job import JobConfig, job_config
from engine.data.corpus import Corpus, CorpusStream, SequenceBlock, State, StreamedCorpus
from engine.data.prepare import Prepared, prepare
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError
from tests.tiny_models import make_tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Streaming:
    """Prepares files and streams them."""

    def __init__(self, tokenizer_dir: Path, folder: Path) -> None:
        self.tokenizer_dir, self.folder = tokenizer_dir, folder
        self.tokenizer = Tokenizer(tokenizer_dir)
        self.files: dict[str, Path] = {}
        self.report = Report()

    def add(self, name: str, content: str | bytes) -> None:
        self.files[name] = self.folder / name
        self.files[name].write_bytes(content.encode() if isinstance(content, str) else content)

    def config(self, sources: Mapping[str, Any] | None = None, **spec: Any) -> JobConfig:
        hyper = {"streaming": True, "max_length": 32, "shuffle_buffer_tokens": 1024, **spec.pop("hyperparameters", {})}
        data = [{"dataset": name, **((sources or {}).get(name) or {})} for name in self.files]
        return job_config({"base_model": "m", "training_data": data, "hyperparameters": hyper, **spec})

    def prepared(self, config: JobConfig) -> Prepared:
        out = self.folder / "out"
        return prepare(config, self.tokenizer_dir, self.files, out, lambda *_: None, self.report)

    def stream(self, config: JobConfig, start: State | None = None) -> CorpusStream:
        streamed = StreamedCorpus(Corpus.read(self.folder / "out"), self.files, start)
        return CorpusStream(config, self.tokenizer, streamed)

    def blocks(self, config: JobConfig, count: int, start: State | None = None) -> list[SequenceBlock]:
        stream = self.stream(config, start)
        return [stream.block(lambda: None) for _ in range(count)]


@pytest.fixture
def streaming(tokenizer_dir: Path, tmp_path: Path) -> Streaming:
    return Streaming(tokenizer_dir, tmp_path)


def lines(name: str, count: int) -> str:
    return "".join(f"{name}{number} says what this function does.\n" for number in range(count))


@pytest.mark.long
def test_every_row_is_trained_as_often_as_every_other_but_for_the_held_out_ones(streaming: Streaming) -> None:
    """A text that is skipped or repeated at the end of a chunk, a file or an epoch would not show anywhere else."""
    names = [f"<{name}{number}>" for name in "abc" for number in range(300)]
    for at, name in enumerate("abc"):
        rows = (json.dumps({"text": text}) + "\n" for text in names[300 * at : 300 * at + 300])
        streaming.add(f"{name}.jsonl", "".join(rows))
    config = streaming.config(hyperparameters={"shuffle_buffer_tokens": 2**20, "max_length": 8192})
    assert streaming.prepared(config).eval.num_examples == 90

    (block,) = streaming.blocks(config, 1)

    assert block.input_ids.shape == (128, 8192)
    assert not (block.labels == -100).any()
    text = "|".join(streaming.tokenizer.decode(row) for row in block.input_ids.tolist())
    written = (streaming.folder / "out" / "eval_rows.jsonl").read_text().splitlines()
    held_out = {json.loads(line)["item"]["text"] for line in written}
    times = {name: text.count(name) for name in names}
    assert all(times[name] == 0 for name in held_out)
    trained = [count for name, count in times.items() if name not in held_out]
    epochs = block.behind.positions[0].epoch
    # A text that two sequences share is not counted, and the last epoch is not complete.
    assert epochs > 10
    assert epochs - 4 <= min(trained) <= max(trained) <= epochs + 1


def test_block_is_the_same_from_its_state_on(streaming: Streaming) -> None:
    """A resumed training would otherwise repeat and skip texts."""
    streaming.add("a.txt", lines("a", 900))
    streaming.add("b.txt.gz", gzip.compress(lines("b", 700).encode()))
    streaming.add("c.jsonl", "".join(json.dumps({"text": lines(f"c{n} ", 3)}) + "\n" for n in range(150)))
    config = streaming.config({"c.jsonl": {"weight": 0.3}}, seed=7)
    streaming.prepared(config)
    blocks = streaming.blocks(config, 150)
    assert max(position.epoch for position in blocks[-1].behind.positions) > 2
    for number in random.Random(4).sample(range(150), 25):  # noqa: S311
        expected = blocks[number]
        start = State.of_dict(json.loads(json.dumps(expected.before.as_dict())))
        for found, other in zip(streaming.blocks(config, 2, start), islice(blocks, number, None), strict=False):
            assert (found.input_ids == other.input_ids).all()
            assert (found.labels == other.labels).all()
            assert (found.origins == other.origins).all()
            assert found.behind == other.behind


def test_sources_take_turns_by_their_weights(streaming: Streaming) -> None:
    streaming.add("a.txt", lines("a", 800))
    streaming.add("b.txt", lines("b", 800))
    config = streaming.config({"b.txt": {"weight": 3}})
    prepared = streaming.prepared(config)
    blocks = streaming.blocks(config, 4)
    from_b = sum(int((block.origins[:, 0] == 1).sum()) for block in blocks)
    assert from_b == pytest.approx(0.75 * 4 * 32, abs=2)
    one = prepared.train.num_tokens / 4
    assert Corpus.read(streaming.folder / "out").tokens == pytest.approx([one, one], rel=0.05)


def test_source_has_at_most_max_tokens_and_max_samples_an_epoch(streaming: Streaming) -> None:
    streaming.add("a.jsonl", "".join(json.dumps({"text": f"<a{n}>"}) + "\n" for n in range(400)))
    streaming.add("b.jsonl", "".join(json.dumps({"text": f"<b{n}>"}) + "\n" for n in range(400)))
    limits = {"a.jsonl": {"max_tokens": 300}, "b.jsonl": {"max_samples": 20}}
    config = streaming.config(limits, holdout_fraction=0, hyperparameters={"max_length": 8})
    streaming.prepared(config)
    text = "".join(
        streaming.tokenizer.decode(row) for block in streaming.blocks(config, 3) for row in block.input_ids.tolist()
    )
    assert "b19>" in text
    assert "<b20>" not in text
    assert "<a3" in text
    assert "<a100>" not in text


def test_damage_behind_the_beginning_is_named_before_training(streaming: Streaming) -> None:
    streaming.add("a.txt", lines("a", 100))
    streaming.add("b.txt", b"fine\n" * 100_000 + "caf\u00e9\n".encode("latin-1") + b"fine\n" * 50_000)
    streaming.add("c.txt", lines("c", 100))
    with pytest.raises(JobError) as caught:
        streaming.prepared(streaming.config())
    assert caught.value.reason == "BAD_DATA"
    assert caught.value.message.startswith("training_data[1] row 100001 of b.txt: not UTF-8: byte 0xe9")


def test_damage_behind_what_is_tokenized_is_named_before_training(streaming: Streaming) -> None:
    """It would end a training days after its start."""
    for number in range(128):
        streaming.add(f"{number}.txt", f"one line of file {number}\n" * 3)
    streaming.add("5.txt", b"fine\n" * 100_000 + b"caf\xe9\n" + b"fine\n" * 50_000)
    with pytest.raises(JobError) as caught:
        streaming.prepared(streaming.config())
    assert caught.value.reason == "BAD_DATA"
    assert caught.value.message.startswith("training_data[5] row 100001 of 5.txt: not UTF-8: byte 0xe9")


def test_truncated_file_is_named_before_training(streaming: Streaming) -> None:
    streaming.add("a.txt", lines("a", 100))
    streaming.add("b.txt.gz", gzip.compress(random.Random(1).randbytes(2_000_000).hex().encode())[:-400_000])  # noqa: S311
    with pytest.raises(JobError) as caught:
        streaming.prepared(streaming.config())
    assert caught.value.reason == "UNREADABLE_FILE"
    assert "b.txt.gz is damaged or incomplete" in caught.value.message
    assert [violation.field for violation in caught.value.violations] == ["spec.training_data[1].dataset"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.csv", "text\none\n"), ("a.jsonl", '{"question": "q", "answer": "a"}\n' * 3)],
)
def test_other_files_are_refused(streaming: Streaming, name: str, content: str) -> None:
    streaming.add(name, content)
    with pytest.raises(JobError) as caught:
        streaming.prepared(streaming.config())
    assert caught.value.reason == "NOT_A_CORPUS"


@pytest.mark.parametrize(
    ("hyper", "field"),
    [
        ({"packing": False}, "packing"),
        ({"group_by_length": True}, "group_by_length"),
        ({"truncation": "drop"}, "truncation"),
        ({"streaming": False}, "shuffle_buffer_tokens"),
    ],
)
def test_settings_that_streaming_excludes_are_refused(streaming: Streaming, hyper: dict[str, Any], field: str) -> None:
    streaming.add("a.txt", "text")
    with pytest.raises(JobError) as caught:
        streaming.config(hyperparameters=hyper)
    assert [violation.field for violation in caught.value.violations] == [f"spec.hyperparameters.{field}"]


def test_nothing_is_reported_as_dropped_that_is_trained(streaming: Streaming) -> None:
    """Every text of a streamed corpus is trained whole; advice to remove or shorten rows would be wrong."""
    streaming.add("a.txt", lines("same", 40) * 3)
    streaming.add("b.jsonl", json.dumps({"text": "a long text " * 2000}) + "\n")
    prepared = streaming.prepared(streaming.config(holdout_fraction=0.3))
    assert (prepared.train.num_duplicates, prepared.rows.duplicates, prepared.rows.truncated) == (0, 0, 0)
    assert not {"DUPLICATE_ROW", "TRUNCATED", "OUTLIER_LENGTH"} & {count.reason for count in streaming.report.counts()}
