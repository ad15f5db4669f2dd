"""Prepares a job's datasets as token shards, once: training, evaluation and resumption read the same ids."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from engine.config.job import DataSource, JobConfig
from engine.data.beginnings import Beginnings
from engine.data.block_tokenizer import EXAMINED_ROWS
from engine.data.blocks import BLOCK_SIZE, BlockSize
from engine.data.content_key import content_key
from engine.data.corpus import Corpus
from engine.data.packing import PackCount
from engine.data.processes import Crew
from engine.data.row_numbers import RowNumberWriter
from engine.data.shards import ShardWriter
from engine.data.split import Progress, Split
from engine.data.statistics import RowCounts, Statistics
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.data.work_limits import WorkLimits
from engine.errors import JobError, LimitExceeded
from engine.file_hash import sha256_of

MIN_BYTES = 4 * 2**20
"""Bytes of data below which processes take longer to start than they save."""

_TOKEN_BYTES = 8
"""Bytes of a token in a shard: its id and its label."""


@dataclass
class PreparedPhase:
    """Counts of the rows of one phase."""

    train: Statistics
    num_packed: int
    """Number of sequences if its rows are packed."""

    def num_sequences(self, *, packing: bool) -> int:
        """Returns the number of sequences in one epoch: rows, or packed sequences."""
        return self.num_packed if packing else self.train.num_examples


@dataclass
class Prepared:
    """The content of prepared.json: what `prepare` wrote."""

    content_key: str
    """Hash of everything that decides the content of the shards (`content_key`)."""
    phases: list[PreparedPhase]
    """Phases in the order of their rows in train/; one if the job has no phases."""
    train: Statistics = field(default_factory=Statistics)
    """Sum over all phases; of dropped rows, each row of a file is counted once."""
    eval: Statistics = field(default_factory=Statistics)
    rows: RowCounts = field(default_factory=RowCounts)
    num_distinct: int = 0
    """Number of distinct rows of training_data or of all phases, before rows are held out, sampled or truncated."""
    num_leaked: int = 0
    """Number of rows of evaluation_data that are also trained on."""
    has_chat: bool = False
    used_plain_template: bool = False
    """True if the model has no chat template and PLAIN_TEMPLATE rendered the conversations."""
    num_begun_tokens: int = 0
    """Number of tokens in train/ if the corpus is streamed: those of the beginnings of its files."""
    corpus_bytes: int = 0
    """Size of the files of a streamed corpus that are read at once: the largest of each weight."""

    @property
    def num_packed(self) -> int:
        """Number of sequences if all rows are packed."""
        return sum(phase.num_packed for phase in self.phases)

    @classmethod
    def read(cls, shards: Path) -> Self:
        """Reads prepared.json in a folder of shards."""
        stored = json.loads((shards / "prepared.json").read_text("utf-8"))
        phases = [PreparedPhase(_statistics(one["train"]), one["num_packed"]) for one in stored["phases"]]
        counted = {name: _statistics(stored[name]) for name in ("train", "eval")}
        return cls(**{**stored, "phases": phases, **counted, "rows": RowCounts(**stored["rows"])})


def _statistics(stored: dict[str, Any]) -> Statistics:
    # The keys of a JSON object are strings.
    return Statistics(**{**stored, "lengths": {int(length): rows for length, rows in stored["lengths"].items()}})


def prepare(
    config: JobConfig,
    tokenizer_dir: Path,
    sources: Mapping[str, Path],
    out: Path,
    progress: Progress,
    report: Report | None = None,
    processes: int = 1,
    key: str = "",
    *,
    beginnings: Beginnings | None = None,
    limits: WorkLimits = WorkLimits(),  # noqa: B008 - it cannot be changed
    min_bytes: int = MIN_BYTES,
    block_size: BlockSize = BLOCK_SIZE,
) -> Prepared:
    """Reads `sources` (dataset id → file) and writes, below `out`:

    train/, eval/ (Arrow shards with columns input_ids and labels; eval only where rows are held out), train_rows.bin
    (the source and number of each row of train/),
    eval_rows.jsonl (a JSON object per held-out row: instruction, input, expected_output, messages without the last
    answer, that answer, tools, the rendered prompt), prepared.json (`Prepared`) and report.json (the report). Of a
    streamed corpus, train/ has the beginnings of its files only, and corpus.json and held_out.bin say how to stream it.

    Rows are deduplicated within their phase, then split by the job's seed over all phases together, then sampled by the
    weights of their sources, then truncated to max_length. With `processes` above 1, data of `min_bytes` or more is
    tokenised in that many child processes, in blocks of `block_size`; the output is the same. `key` is the
    `content_key`, if it is already known. `beginnings` are those of a streamed corpus, if they have been read: then its
    files need not be there. Raises LimitExceeded for data beyond the `limits`.

    Problems and warnings are added to `report`, also if a JobError is raised: EMPTY_DATASET, BAD_DATA (rows with
    problems), UNKNOWN_COLUMN, TOO_FEW_ROWS, NOTHING_TO_TRAIN, and those of files, formats, templates, tokenizer, spans.
    """
    report = report if report is not None else Report()
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    key = key or content_key(config, tokenizer_dir, {name: sha256_of(path) for name, path in sources.items()})
    packs = _packs(config)
    with contextlib.ExitStack() as stack:
        begun = beginnings or Beginnings.of_job(config, sources, partial(progress, "reading_rows"))
        size = _num_bytes(sources, begun)
        crew = stack.enter_context(_crew(config, tokenizer_dir, tokenizer, size, processes, min_bytes, limits))
        split = Split(config, crew, sources, report, progress, block_size, begun)
        report.refuse()
        out.mkdir(parents=True, exist_ok=True)
        train = stack.enter_context(ShardWriter(out / "train", f"{key[:16]}-train"))
        numbers = stack.enter_context(RowNumberWriter.open(out, config))
        if split.evaluates:
            evaluated = stack.enter_context(ShardWriter(out / "eval", f"{key[:16]}-eval"))
            eval_rows = stack.enter_context((out / "eval_rows.jsonl").open("w", encoding="utf-8"))
        for phase, made in split.tokenised(keep=True):
            _check_size(split, limits)
            if made.train:
                packs[phase].add(made.train.lengths.tolist())
                train.write(made.train)
                numbers.write(made.train)
            if made.eval:
                evaluated.write(made.eval)
                eval_rows.write(made.eval_rows)
    report.refuse()
    split.warn_about_long_rows()
    split.refuse_untrainable()
    result = _result(config, tokenizer, split, packs, key, begun)
    if config.hyperparameters.streaming:
        Corpus(split.estimated_tokens(), split.held_out.tobytes()).write(out)
    (out / "prepared.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps(report.as_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def prepare_evaluation(
    config: JobConfig,
    listed: Sequence[DataSource],
    tokenizer_dir: Path,
    sources: Mapping[str, Path],
    out: Path,
    progress: Progress,
) -> None:
    """Writes eval/ and eval_rows.jsonl as `prepare` does, of all rows of the sources `listed`, read with the template,
    system prompt and lengths of a job. Raises what `prepare` raises."""
    # A job has rows to train; here they are the same ones, and nobody reads them.
    rows = [source.model_copy(update={"weight": 1.0}) for source in listed]
    hyper = config.hyperparameters.model_copy(update={"streaming": False})
    alone = config.model_copy(
        update={"training_data": rows, "phases": [], "evaluation_data": rows, "hyperparameters": hyper}
    )
    prepare(alone, tokenizer_dir, sources, out, progress, key="evaluation")


def examine(
    config: JobConfig,
    tokenizer_dir: Path,
    sources: Mapping[str, Path],
    progress: Progress,
    report: Report,
    processes: int = 1,
    limits: WorkLimits = WorkLimits(),  # noqa: B008 - it cannot be changed
    *,
    held_out: Path | None = None,
    beginnings: Beginnings | None = None,
) -> Prepared | None:
    """Counts what `prepare` would write for the valid rows, without writing anything; but if graders name values of the
    held-out rows, the first ones of these are written to `held_out`, as in eval_rows.jsonl. All problems that would
    refuse a job are added to `report`. `beginnings` as in `prepare`. Returns None if an error stopped the counting.

    Raises JobError if the tokenizer cannot be used, and LimitExceeded for data beyond the `limits`.
    """
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    packs = _packs(config)
    num_examined = 0
    try:
        begun = beginnings or Beginnings.of_job(config, sources, partial(progress, "reading_rows"))
        size = _num_bytes(sources, begun)
        with _crew(config, tokenizer_dir, tokenizer, size, processes, MIN_BYTES, limits) as crew:
            split = Split(config, crew, sources, report, progress, BLOCK_SIZE, begun)
            for phase, made in split.tokenised(keep=False):
                _check_size(split, limits)
                if held_out is not None and made.eval_rows and num_examined < EXAMINED_ROWS:
                    num_examined += made.eval_rows.count("\n")
                    with held_out.open("a", encoding="utf-8") as file:
                        file.write(made.eval_rows)
                if made.train:
                    packs[phase].add(made.train.lengths.tolist())
        split.warn_about_long_rows()
        if not report.num_errors:
            split.refuse_untrainable()
    except LimitExceeded:
        raise
    except JobError as error:
        place = next((v.field for v in error.violations), "")
        report.refused(place.removeprefix("spec.").partition(".")[0] or "training_data[0]", error)
        return None
    return _result(config, tokenizer, split, packs, "", begun)


def _crew(
    config: JobConfig,
    tokenizer_dir: Path,
    tokenizer: Tokenizer,
    num_bytes: int,
    processes: int,
    min_bytes: int,
    limits: WorkLimits,
) -> Crew:
    alone = processes == 1 or num_bytes < min_bytes
    return Crew(config, tokenizer_dir, tokenizer, 0 if alone else processes, limits)


def _num_bytes(sources: Mapping[str, Path], beginnings: Beginnings | None) -> int:
    """Returns the bytes that are tokenised."""
    if beginnings is None:
        return sum(path.stat().st_size for path in sources.values())
    others = (path for name, path in sources.items() if name not in beginnings)
    return beginnings.num_bytes + sum(path.stat().st_size for path in others)


def _check_size(split: Split, limits: WorkLimits) -> None:
    """Raises LimitExceeded if the tokens so far exceed a limit."""
    num_tokens = split.train.num_tokens + split.eval.num_tokens
    limits.check_size(num_tokens, num_tokens * _TOKEN_BYTES)


def _packs(config: JobConfig) -> list[PackCount]:
    return [PackCount(config.hyperparameters.max_length) for _ in range(len(config.phases) or 1)]


def _streamed(config: JobConfig, split: Split) -> Statistics:
    """Returns the counts of one epoch over a streamed corpus, estimated from the beginnings of its files: its examples
    are sequences of max_length tokens."""
    length = config.hyperparameters.max_length
    tokens = zip(config.training_data, split.estimated_tokens(), strict=True)
    sequences = max(round(sum(source.weight * counted for source, counted in tokens)) // length, 1)
    return replace(
        split.train,
        num_examples=sequences,
        num_tokens=sequences * length,
        num_trained_tokens=sequences * length,
        num_truncated=0,
        max_tokens=length,
        lengths={length: sequences},
    )


def _result(
    config: JobConfig,
    tokenizer: Tokenizer,
    split: Split,
    packs: list[PackCount],
    key: str,
    beginnings: Beginnings | None,
) -> Prepared:
    phases = [PreparedPhase(counted, pack.num_sequences) for counted, pack in zip(split.phases, packs, strict=True)]
    train = split.train
    if config.hyperparameters.streaming:
        train = _streamed(config, split)
        phases = [PreparedPhase(train, train.num_examples)]
    return Prepared(
        content_key=key,
        phases=phases,
        train=train,
        eval=split.eval,
        rows=split.rows,
        num_distinct=split.num_distinct,
        num_leaked=split.num_leaked,
        has_chat=split.has_chat,
        used_plain_template=not tokenizer.has_own_template and config.chat_template is None,
        num_begun_tokens=0 if beginnings is None else split.train.num_tokens,
        corpus_bytes=0 if beginnings is None else beginnings.bytes_at_once(config),
    )
