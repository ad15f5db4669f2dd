"""From a job's datasets to token shards, once: training, evaluation and resumption read the same ids."""

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.config.job import DataSource, JobConfig
from engine.data.formats import Example
from engine.data.packing import count_packed
from engine.data.spans import Tokens, prompt_text
from engine.data.split import Progress, Split
from engine.data.statistics import Statistics
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError

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
    num_packed: int = 0
    """What num_sequences is, or would be, with packing."""
    train: Statistics = field(default_factory=Statistics)
    eval: Statistics = field(default_factory=Statistics)
    num_leaked: int = 0
    """Rows of evaluation_data that are also trained on."""
    has_chat: bool = False
    used_plain_template: bool = False
    """True when the model has no chat template of its own and conversations were written with ours."""


def prepare(
    config: JobConfig,
    tokenizer_dir: Path,
    sources: Mapping[str, Path],
    out: Path,
    progress: Progress,
    report: Report | None = None,
) -> Prepared:
    """Reads `sources` (dataset id → file) and writes, below `out`:

    train/, eval/ (Arrow shards with columns input_ids and labels; eval only where rows are held out),
    eval_rows.jsonl (a JSON object per held-out row: instruction, input, expected_output, messages without the last
    answer, prompt as the model is given it) and prepared.json (`Prepared`).

    Rows are deduplicated, then split by the job's seed, then sampled by the weights of their sources, then cut to
    max_length. What is wrong or suspicious is in the
    `report`, also when a JobError is raised: EMPTY_DATASET, BAD_DATA (rows with problems), UNKNOWN_COLUMN,
    TOO_FEW_ROWS, NOTHING_TO_TRAIN, and those of files, formats, templates, tokenizer, spans.
    """
    report = report if report is not None else Report()
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    split = Split(config, tokenizer, sources, report, progress)
    report.refuse()
    out.mkdir(parents=True, exist_ok=True)
    lengths = array("q")
    _write_shards(out / "train", split.trained(), lengths)
    if split.evaluates:
        _write_shards(out / "eval", _with_rows(split, tokenizer, out / "eval_rows.jsonl"), array("q"))
    report.refuse()
    split.doubt_lengths()
    split.refuse_untrainable()
    result = _result(config, tokenizer, split, lengths, _content_key(config, tokenizer, sources))
    (out / "prepared.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    return result


def examine(
    config: JobConfig, tokenizer_dir: Path, sources: Mapping[str, Path], progress: Progress, report: Report
) -> Prepared | None:
    """Counts what `prepare` would write, of the rows that are right, and writes nothing. Everything that would refuse a
    job is in the `report`; None when it left nothing to count.

    Raises JobError for a tokenizer that cannot be used.
    """
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    lengths = array("q")
    try:
        split = Split(config, tokenizer, sources, report, progress)
        for tokens in split.trained():
            lengths.append(len(tokens.input_ids))
        if split.evaluates:
            for _ in split.evaluated():
                pass
        split.doubt_lengths()
        if not report.num_errors:
            split.refuse_untrainable()
    except JobError as error:
        place = next((v.field for v in error.violations), "")
        report.refused(place.removeprefix("spec.").partition(".")[0] or "training_data[0]", error)
        return None
    return _result(config, tokenizer, split, lengths, "")


def _result(
    config: JobConfig, tokenizer: Tokenizer, split: Split, lengths: Sequence[int], content_key: str
) -> Prepared:
    packed = count_packed(lengths, config.hyperparameters.max_length)
    return Prepared(
        content_key=content_key,
        num_sequences=packed if config.hyperparameters.packing else len(lengths),
        num_packed=packed,
        train=split.train,
        eval=split.eval,
        num_leaked=split.num_leaked,
        has_chat=split.has_chat,
        used_plain_template=not tokenizer.has_own_template and config.chat_template is None,
    )


def _with_rows(split: Split, tokenizer: Tokenizer, path: Path) -> Iterator[Tokens]:
    """Held-out rows as tokens, and beside them as people read them."""
    with path.open("w", encoding="utf-8") as rows:
        for example, tokens in split.evaluated():
            rows.write(json.dumps(_eval_row(example, tokenizer), ensure_ascii=False) + "\n")
            yield tokens


def _write_shards(folder: Path, rows: Iterator[Tokens], lengths: "array[int]") -> None:
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


def _eval_row(example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    prompt = prompt_text(example, tokenizer)
    if example.is_chat or example.prompt:
        expected = example.expected_output
    else:
        whole = tokenizer.decode(example.input_ids) if example.is_tokenized else example.completion
        expected = whole[len(prompt) :]
    return {
        "instruction": example.instruction or prompt,
        "input": example.input,
        "expected_output": expected,
        "messages": example.messages[:-1],
        "prompt": prompt,
    }


def _content_key(config: JobConfig, tokenizer: Tokenizer, sources: Mapping[str, Path]) -> str:
    hyper = config.hyperparameters
    files = {name: _sha256(path) for name, path in sources.items()}

    def described(listed: Sequence[DataSource]) -> list[Any]:
        return [
            [files[one.dataset], one.weight, sorted(one.mapping.items()), one.template, one.format] for one in listed
        ]

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
