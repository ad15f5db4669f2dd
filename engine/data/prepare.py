"""From a job's datasets to token shards, once: training, evaluation and resumption read the same ids."""

import hashlib
import heapq
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.config.job import DataSource, JobConfig
from engine.data.files import read_rows
from engine.data.formats import Example, RowReader
from engine.data.packing import count_packed
from engine.data.rows import RowProblem
from engine.data.spans import Tokens, prompt_text, tokens_of
from engine.data.statistics import Statistics
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Problems
from engine.errors import JobError, Violation

Progress = Callable[[str, float | None], None]
"""Told the phase (reading_rows, tokenising) and the share of it that is done; called for every row."""

_LAYOUT = 2
"""Part of the content key: raise it when the same input would give other shards."""
_BATCH = 1000


@dataclass
class Prepared:
    """What `prepare` wrote, as it stands in prepared.json."""

    content_key: str
    """SHA-256 over everything the shards depend on: files, tokenizer, template and configuration."""
    num_sequences: int
    """Sequences the trainer will see in one epoch: rows, or packs of rows."""
    train: Statistics = field(default_factory=Statistics)
    eval: Statistics = field(default_factory=Statistics)
    num_leaked: int = 0
    """Rows of evaluation_data that are also trained on."""
    has_chat: bool = False
    used_plain_template: bool = False
    """True when the model has no chat template of its own and conversations were written with ours."""


def prepare(
    config: JobConfig, tokenizer_dir: Path, sources: Mapping[str, Path], out: Path, progress: Progress
) -> Prepared:
    """Reads `sources` (dataset id → file) and writes, below `out`:

    train/, eval/ (Arrow shards with columns input_ids and labels; eval only where rows are held out),
    eval_rows.jsonl (a JSON object per held-out row: instruction, input, expected_output, messages without the last
    answer, prompt as the model is given it) and prepared.json (`Prepared`).

    Rows are deduplicated, then split by the job's seed, then cut to max_length. Raises JobError: EMPTY_DATASET,
    BAD_DATA (rows with problems), UNKNOWN_COLUMN, TOO_FEW_ROWS, NOTHING_TO_TRAIN, and those of files, tokenizer, spans.
    """
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    progress("reading_rows", None)
    training = _Source.all_of("training_data", config.training_data, sources, config)
    evaluation = _Source.all_of("evaluation_data", config.evaluation_data, sources, config)
    trained_digests = _survey(training, progress)
    evaluated_digests = _survey(evaluation, progress)
    held_out = set(evaluated_digests) if evaluation else _held_out(trained_digests, config)

    out.mkdir(parents=True, exist_ok=True)
    num_rows = len(trained_digests) + len(evaluated_digests)
    tokenising = _Tokenising(config, tokenizer, num_rows, progress)
    lengths: list[int] = []
    result = Prepared(content_key=_content_key(config, tokenizer, sources), num_sequences=0)
    result.num_leaked = len(held_out.intersection(trained_digests)) if evaluation else 0
    result.used_plain_template = not tokenizer.has_own_template and config.chat_template is None
    skipped = set() if evaluation else held_out

    def trained() -> Iterator[Tokens]:
        for digest, example in _unique(training):
            result.has_chat |= example.is_chat
            if digest not in skipped:
                yield from tokenising.row(example, result.train)

    def evaluated() -> Iterator[Tokens]:
        with (out / "eval_rows.jsonl").open("w", encoding="utf-8") as rows:
            for digest, example in _unique(evaluation or training):
                if digest in held_out:
                    for tokens in tokenising.row(example, result.eval):
                        rows.write(json.dumps(_eval_row(example, tokenizer), ensure_ascii=False) + "\n")
                        yield tokens

    _write_shards(out / "train", trained(), lengths)
    if held_out:
        _write_shards(out / "eval", evaluated(), [])
    result.train.num_duplicates = sum(source.num_duplicates for source in training)
    result.eval.num_duplicates = sum(source.num_duplicates for source in evaluation)
    result.train.format = _formats(training)
    result.eval.format = _formats(evaluation or training)
    _refuse_untrainable(result, bool(held_out), config)
    result.num_sequences = (
        count_packed(lengths, config.hyperparameters.max_length) if config.hyperparameters.packing else len(lengths)
    )
    (out / "prepared.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


class _Source:
    """One dataset of the job, which can be read any number of times."""

    def __init__(self, place: str, source: DataSource, path: Path, config: JobConfig) -> None:
        self.place, self.path = place, path
        self.num_duplicates = 0
        self.format = ""
        self._source, self.system_prompt = source, config.system_prompt
        self._max_length = config.hyperparameters.max_length

    @classmethod
    def all_of(
        cls, name: str, listed: Sequence[DataSource], paths: Mapping[str, Path], config: JobConfig
    ) -> list["_Source"]:
        return [cls(f"{name}[{index}]", source, paths[source.dataset], config) for index, source in enumerate(listed)]

    def read(self) -> Iterator[Example | RowProblem]:
        reader = RowReader({str(ours): theirs for ours, theirs in self._source.mapping.items()}, self.system_prompt)
        empty = True
        for row in read_rows(self.path, self._max_length):
            empty = False
            if isinstance(row, RowProblem):
                yield row
            else:
                yield from reader.read(row)
        self.format = reader.format
        if empty:
            message = f"{self.place}: {self.path.name} has no rows."
            where = Violation(f"spec.{self.place}.dataset", "The file has no rows.")
            raise JobError("EMPTY_DATASET", message, "Upload a file that has rows.", [where])
        if unseen := reader.unseen_columns():
            violations = [Violation(f"spec.{self.place}.mapping.{ours}", text) for ours, text in unseen.items()]
            first = violations[0]
            raise JobError("UNKNOWN_COLUMN", f"{first.field}: {first.description}", "Correct the mapping.", violations)


def _survey(sources: Sequence[_Source], progress: Progress) -> list[bytes]:
    """Digests of the distinct rows, in their order. Refuses data that has a row with a problem."""
    problems = Problems()
    digests: dict[bytes, None] = {}
    plain = ""
    for source in sources:
        before, read = len(digests), 0
        for item in source.read():
            progress("reading_rows", None)
            if isinstance(item, RowProblem):
                problems.add(source.place, item)
                continue
            read += 1
            digests[_digest(item)] = None
            plain = plain or ("" if item.is_chat else source.place)
        source.num_duplicates = read - (len(digests) - before)
    problems.refuse()
    if plain and any(source.system_prompt for source in sources):
        message = f"{plain} has rows of plain text, before which no system prompt can be put."
        where = Violation("spec.system_prompt", message)
        raise JobError("INVALID_CONFIG", message, "Leave system_prompt out, or use a conversational format.", [where])
    return list(digests)


def _unique(sources: Sequence[_Source]) -> Iterator[tuple[bytes, Example]]:
    seen: set[bytes] = set()
    for source in sources:
        for item in source.read():
            if isinstance(item, RowProblem):
                raise JobError("BAD_DATA", f"{source.path.name} changed while it was read.")
            digest = _digest(item)
            if digest not in seen:
                seen.add(digest)
                yield digest, item


def _digest(example: Example) -> bytes:
    content: list[Any] = [*example.messages] or [example.prompt, example.completion]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).digest()


def _held_out(digests: Sequence[bytes], config: JobConfig) -> set[bytes]:
    """The share of the rows to hold out: exactly as many, the same ones whatever the order of the rows."""
    if config.holdout_fraction == 0:
        return set()
    if len(digests) < 2:
        raise JobError(
            "TOO_FEW_ROWS",
            f"{len(digests)} distinct row cannot be split into training and held-out rows.",
            "Add rows, or set spec.holdout_fraction = 0 to train without evaluation.",
            [Violation("spec.holdout_fraction", f"{config.holdout_fraction:g} of one row leaves nothing to train on.")],
        )
    count = max(1, round(config.holdout_fraction * len(digests)))
    seed = config.seed.to_bytes(8, "big")
    return set(heapq.nsmallest(count, digests, key=lambda digest: hashlib.blake2b(digest, key=seed).digest()))


class _Tokenising:
    def __init__(self, config: JobConfig, tokenizer: Tokenizer, num_rows: int, progress: Progress) -> None:
        self._config, self._tokenizer, self._num_rows, self._progress = config, tokenizer, num_rows, progress
        self._done = 0

    def row(self, example: Example, statistics: Statistics) -> Iterator[Tokens]:
        """The row's tokens, counted; nothing when none of them would be trained."""
        hyper = self._config.hyperparameters
        tokens = tokens_of(example, self._tokenizer, hyper.loss_on, hyper.max_length)
        self._done += 1
        self._progress("tokenising", self._done / self._num_rows)
        # The first token is given, never predicted: a label there trains nothing.
        if any(label >= 0 for label in tokens.labels[1:]):
            statistics.count(len(tokens.input_ids), tokens.num_trained, tokens.truncated)
            yield tokens
        else:
            statistics.num_dropped += 1
            statistics.num_truncated += tokens.truncated


def _write_shards(folder: Path, rows: Iterator[Tokens], lengths: list[int]) -> None:
    from datasets import Dataset, Features, List, Value, disable_progress_bars
    from datasets.arrow_writer import ArrowWriter

    disable_progress_bars()
    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    written = folder.with_name(f".{folder.name}.arrow")
    writer = ArrowWriter(path=str(written), features=features, writer_batch_size=_BATCH)
    for row in rows:
        writer.write({"input_ids": row.input_ids, "labels": row.labels})
        lengths.append(len(row.input_ids))
    writer.finalize()
    # save_to_disk writes the layout that load_from_disk memory-maps.
    Dataset.from_file(str(written)).save_to_disk(str(folder))
    written.unlink()


def _refuse_untrainable(result: Prepared, evaluates: bool, config: JobConfig) -> None:
    for name, statistics in (("training", result.train), *([("held-out", result.eval)] if evaluates else [])):
        if statistics.num_trained_tokens == 0:
            raise JobError(
                "NOTHING_TO_TRAIN",
                f"Of the {name} rows no token would be trained: max_length = {config.hyperparameters.max_length} cuts "
                "off every answer.",
                "Raise hyperparameters.max_length, or shorten what stands before the answers.",
                [Violation("spec.hyperparameters.max_length", "Every answer lies beyond it.")],
            )


def _eval_row(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    prompt = prompt_text(example, tokenizer)
    expected = example.expected_output if example.is_chat or example.prompt else example.completion[len(prompt) :]
    return {
        "instruction": example.instruction or prompt,
        "input": example.input,
        "expected_output": expected,
        "messages": example.messages[:-1],
        "prompt": prompt,
    }


def _formats(sources: Sequence[_Source]) -> str:
    return ", ".join(dict.fromkeys(source.format for source in sources))


def _content_key(config: JobConfig, tokenizer: Tokenizer, sources: Mapping[str, Path]) -> str:
    hyper = config.hyperparameters
    files = {name: _sha256(path) for name, path in sources.items()}

    def described(listed: Sequence[DataSource]) -> list[Any]:
        return [[files[source.dataset], sorted(source.mapping.items())] for source in listed]

    parts = {
        "layout": _LAYOUT,
        "tokenizer": tokenizer.fingerprint(),
        "training_data": described(config.training_data),
        "evaluation_data": described(config.evaluation_data),
        "holdout": None if config.evaluation_data else [config.holdout_fraction, config.seed],
        "system_prompt": config.system_prompt,
        "max_length": hyper.max_length,
        "loss_on": hyper.loss_on,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
