"""From a job's datasets to token shards, once: training, evaluation and resumption read the same ids."""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from engine.config.job import JobConfig
from engine.data.content_key import content_key
from engine.data.packing import PackCount
from engine.data.processes import Crew
from engine.data.shards import ShardWriter
from engine.data.split import Progress, Split
from engine.data.statistics import RowCounts, Statistics
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError
from engine.file_hash import sha256_of

_WORTH_PROCESSES = 4 * 2**20
"""Bytes of data below which processes take longer to start than they save."""


@dataclass
class PreparedPhase:
    """One phase's rows."""

    train: Statistics
    num_packed: int
    """Sequences that packing would make of them."""

    def num_sequences(self, *, packing: bool) -> int:
        """Sequences the trainer will see in one epoch: rows, or packs of rows."""
        return self.num_packed if packing else self.train.num_examples


@dataclass
class Prepared:
    """What `prepare` wrote, as it stands in prepared.json."""

    content_key: str
    """What the shards depend on (`content_key`)."""
    phases: list[PreparedPhase]
    """In the order of their rows in train/; one where the job has no phases."""
    train: Statistics = field(default_factory=Statistics)
    """Of all phases together: their examples added up; of those dropped and left out each row of a file once."""
    eval: Statistics = field(default_factory=Statistics)
    rows: RowCounts = field(default_factory=RowCounts)
    num_distinct: int = 0
    """Rows that training_data or the phases have between them, each once, before any is held out, drawn or cut."""
    num_leaked: int = 0
    """Rows of evaluation_data that are also trained on."""
    has_chat: bool = False
    used_plain_template: bool = False
    """True when the model has no chat template of its own and conversations were written with ours."""

    @property
    def num_packed(self) -> int:
        """Sequences that packing would make of all rows."""
        return sum(phase.num_packed for phase in self.phases)

    @classmethod
    def read(cls, shards: Path) -> Self:
        """What stands in a folder of shards."""
        stored = json.loads((shards / "prepared.json").read_text("utf-8"))
        phases = [PreparedPhase(_statistics(one["train"]), one["num_packed"]) for one in stored["phases"]]
        counted = {name: _statistics(stored[name]) for name in ("train", "eval")}
        return cls(**{**stored, "phases": phases, **counted, "rows": RowCounts(**stored["rows"])})


def _statistics(stored: dict[str, Any]) -> Statistics:
    # The keys of a JSON object are text.
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
) -> Prepared:
    """Reads `sources` (dataset id → file) and writes, below `out`:

    train/, eval/ (Arrow shards with columns input_ids and labels; eval only where rows are held out),
    eval_rows.jsonl (a JSON object per held-out row: instruction, input, expected_output, messages without the last
    answer, prompt as the model is given it), prepared.json (`Prepared`) and report.json (the report).

    Rows are deduplicated within their phase, then split by the job's seed over all phases together, then sampled by the
    weights of their sources, then cut to max_length. With `processes` more than 1, large files are worked on in so many
    beside this one; what comes out is the same. `key` is the `content_key`, where it is known already.

    What is wrong or suspicious is in the `report`, also when a JobError is raised: EMPTY_DATASET, BAD_DATA (rows with
    problems), UNKNOWN_COLUMN, TOO_FEW_ROWS, NOTHING_TO_TRAIN, and those of files, formats, templates, tokenizer, spans.
    """
    report = report if report is not None else Report()
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    key = key or content_key(config, tokenizer_dir, {name: sha256_of(path) for name, path in sources.items()})
    packs = _packs(config)
    with contextlib.ExitStack() as stack:
        crew = stack.enter_context(_crew(config, tokenizer_dir, tokenizer, sources, processes))
        split = Split(config, crew, sources, report, progress)
        report.refuse()
        out.mkdir(parents=True, exist_ok=True)
        train = stack.enter_context(ShardWriter(out / "train", f"{key[:16]}-train"))
        if split.evaluates:
            evaluated = stack.enter_context(ShardWriter(out / "eval", f"{key[:16]}-eval"))
            eval_rows = stack.enter_context((out / "eval_rows.jsonl").open("w", encoding="utf-8"))
        for phase, made in split.tokenised(keep=True):
            if made.train:
                packs[phase].add(made.train.lengths.tolist())
                train.write(made.train)
            if made.eval:
                evaluated.write(made.eval)
                eval_rows.write(made.eval_rows)
    report.refuse()
    split.doubt_lengths()
    split.refuse_untrainable()
    result = _result(config, tokenizer, split, packs, key)
    (out / "prepared.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
    (out / "report.json").write_text(json.dumps(report.as_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
    return result


def examine(
    config: JobConfig,
    tokenizer_dir: Path,
    sources: Mapping[str, Path],
    progress: Progress,
    report: Report,
    processes: int = 1,
) -> Prepared | None:
    """Counts what `prepare` would write, of the rows that are right, and writes nothing. Everything that would refuse a
    job is in the `report`; None when it left nothing to count.

    Raises JobError for a tokenizer that cannot be used.
    """
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    packs = _packs(config)
    try:
        with _crew(config, tokenizer_dir, tokenizer, sources, processes) as crew:
            split = Split(config, crew, sources, report, progress)
            for phase, made in split.tokenised(keep=False):
                if made.train:
                    packs[phase].add(made.train.lengths.tolist())
        split.doubt_lengths()
        if not report.num_errors:
            split.refuse_untrainable()
    except JobError as error:
        place = next((v.field for v in error.violations), "")
        report.refused(place.removeprefix("spec.").partition(".")[0] or "training_data[0]", error)
        return None
    return _result(config, tokenizer, split, packs, "")


def _crew(
    config: JobConfig, tokenizer_dir: Path, tokenizer: Tokenizer, sources: Mapping[str, Path], processes: int
) -> Crew:
    size = sum(path.stat().st_size for path in sources.values())
    alone = processes == 1 or size < _WORTH_PROCESSES
    return Crew(config, tokenizer_dir, tokenizer, 0 if alone else processes)


def _packs(config: JobConfig) -> list[PackCount]:
    return [PackCount(config.hyperparameters.max_length) for _ in range(len(config.phases) or 1)]


def _result(config: JobConfig, tokenizer: Tokenizer, split: Split, packs: list[PackCount], key: str) -> Prepared:
    phases = zip(split.phases, packs, strict=True)
    return Prepared(
        content_key=key,
        phases=[PreparedPhase(counted, pack.num_sequences) for counted, pack in phases],
        train=split.train,
        eval=split.eval,
        rows=split.rows,
        num_distinct=split.num_distinct,
        num_leaked=split.num_leaked,
        has_chat=split.has_chat,
        used_plain_template=not tokenizer.has_own_template and config.chat_template is None,
    )
