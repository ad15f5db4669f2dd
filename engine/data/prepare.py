"""From a job's datasets to token shards, once: training, evaluation and resumption read the same ids."""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.config.job import DataSource, JobConfig
from engine.data.packing import PackCount
from engine.data.processes import Crew
from engine.data.shards import ShardWriter
from engine.data.split import Progress, Split
from engine.data.statistics import Statistics
from engine.data.tokenizer import Tokenizer
from engine.data.validation import Report
from engine.errors import JobError

_LAYOUT = 3
"""Part of the content key: raise it when the same input would give other shards."""
_WORTH_PROCESSES = 4 * 2**20
"""Bytes of data below which processes take longer to start than they save."""


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
    processes: int = 1,
) -> Prepared:
    """Reads `sources` (dataset id → file) and writes, below `out`:

    train/, eval/ (Arrow shards with columns input_ids and labels; eval only where rows are held out),
    eval_rows.jsonl (a JSON object per held-out row: instruction, input, expected_output, messages without the last
    answer, prompt as the model is given it) and prepared.json (`Prepared`).

    With `processes` more than 1, large files are worked on in so many beside this one; what comes out is the same.
    Rows are deduplicated, then split by the job's seed, then sampled by the weights of their sources, then cut to
    max_length. What is wrong or suspicious is in the
    `report`, also when a JobError is raised: EMPTY_DATASET, BAD_DATA (rows with problems), UNKNOWN_COLUMN,
    TOO_FEW_ROWS, NOTHING_TO_TRAIN, and those of files, formats, templates, tokenizer, spans.
    """
    report = report if report is not None else Report()
    tokenizer = Tokenizer(tokenizer_dir, config.chat_template)
    key = _content_key(config, tokenizer, sources)
    packs = PackCount(config.hyperparameters.max_length)
    with contextlib.ExitStack() as stack:
        crew = stack.enter_context(_crew(config, tokenizer_dir, tokenizer, sources, processes))
        split = Split(config, crew, sources, report, progress)
        report.refuse()
        out.mkdir(parents=True, exist_ok=True)
        train = stack.enter_context(ShardWriter(out / "train", f"{key[:16]}-train"))
        if split.evaluates:
            evaluated = stack.enter_context(ShardWriter(out / "eval", f"{key[:16]}-eval"))
            eval_rows = stack.enter_context((out / "eval_rows.jsonl").open("w", encoding="utf-8"))
        for made in split.tokenised(keep=True):
            if made.train:
                packs.add(made.train.lengths.tolist())
                train.write(made.train)
            if made.eval:
                evaluated.write(made.eval)
                eval_rows.write(made.eval_rows)
    report.refuse()
    split.doubt_lengths()
    split.refuse_untrainable()
    result = _result(config, tokenizer, split, packs, key)
    (out / "prepared.json").write_text(json.dumps(asdict(result), indent=2) + "\n", encoding="utf-8")
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
    packs = PackCount(config.hyperparameters.max_length)
    try:
        with _crew(config, tokenizer_dir, tokenizer, sources, processes) as crew:
            split = Split(config, crew, sources, report, progress)
            for made in split.tokenised(keep=False):
                if made.train:
                    packs.add(made.train.lengths.tolist())
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


def _result(config: JobConfig, tokenizer: Tokenizer, split: Split, packs: PackCount, content_key: str) -> Prepared:
    num_packed = packs.num_sequences
    return Prepared(
        content_key=content_key,
        num_sequences=num_packed if config.hyperparameters.packing else split.train.num_examples,
        num_packed=num_packed,
        train=split.train,
        eval=split.eval,
        num_leaked=split.num_leaked,
        has_chat=split.has_chat,
        used_plain_template=not tokenizer.has_own_template and config.chat_template is None,
    )


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
