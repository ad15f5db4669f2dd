"""Measures speed and memory of streaming a corpus of text, without a model.

    python -m benchmarks.corpus_stream [--mb 10000] [--tokenizer FOLDER]

Writes a corpus of that size in 7 files, prepares it as a preflight does, and reads one epoch of sequences as a
training does, from a process of its own that tokenises. Then does the same with a tenth of it. Memory is the peak of
the resident set (VmHWM) of the reading process and of the tokenising one, each in a fresh process: the ratio of both
sizes shows if it is flat. At the end the last block is made again from its state, as a resumed training does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path

import psutil

from benchmarks.table import Row, show
from engine.catalogue import Catalogue
from engine.config.job import JobConfig, job_config
from engine.data.corpus import Corpus, State, StreamedCorpus
from engine.data.prepare import prepare
from engine.data.processes import Crew
from engine.data.tokenizer import Tokenizer
from engine.data.work_limits import WorkLimits

_FILES = 7
_FLAT = 1.2
_WORDS = Path(__file__).parent.parent / "examples" / "data" / "stdlib_qa_train.jsonl"


@dataclass
class Taken:
    """The measurements of one corpus."""

    prepare_seconds: float
    prepare_bytes: int
    """Peak memory of the process that prepares and reads, after preparing."""
    seconds: float
    num_sequences: int
    reader_bytes: int
    worker_bytes: int
    first_seconds: float
    """Seconds to the first block, with the start of the process."""
    resumed_seconds: float
    """The same for the last block."""


def write_corpus(folder: Path, megabytes: int) -> None:
    """Writes paragraphs of 40 to 200 words to 7 files."""
    words = " ".join(text for line in _WORDS.open("rb") for text in json.loads(line).values()).split()
    chosen = random.Random(1)  # noqa: S311
    texts = [" ".join(chosen.choices(words, k=chosen.randint(40, 200))) for _ in range(4000)]
    for number in range(_FILES):
        size = 0
        with (folder / f"{number}.txt").open("w", encoding="utf-8") as file:
            while size < megabytes * 1_000_000 / _FILES:
                size += file.write(f"{chosen.random()} {chosen.choice(texts)}\n\n")


def peak_bytes(process: int) -> int:
    """Returns the peak resident memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise ValueError("the system reports no VmHWM")


def measure(folder: Path, tokenizer_dir: Path) -> Taken:
    """Prepares and reads the corpus in this process and one that it starts."""
    files = {file.name: file for file in sorted(folder.glob("*.txt"))}
    hyper = {"streaming": True, "max_length": 1024}
    data = [{"dataset": name} for name in files]
    config = job_config({"base_model": "m", "training_data": data, "hyperparameters": hyper, "holdout_fraction": 0.01})
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        start = time.perf_counter()
        prepare(config, tokenizer_dir, files, out, lambda *_: None)
        prepared, prepared_bytes = time.perf_counter() - start, peak_bytes(os.getpid())
        corpus = Corpus.read(out)
    tokenizer = Tokenizer(tokenizer_dir)
    start = time.perf_counter()
    first, count, worker = 0.0, 0, 0
    last = State(0, [], [])
    with Crew(config, tokenizer_dir, tokenizer, 1, WorkLimits()) as crew:
        for made in crew.map(repeat(("next_sequences", StreamedCorpus(corpus, files))), lambda: None):
            first = first or time.perf_counter() - start
            last, count = made.before, count + len(made.input_ids)
            (child,) = psutil.Process().children()
            worker = max(worker, peak_bytes(child.pid))
            if made.behind.positions[0].epoch:
                break
    seconds = time.perf_counter() - start
    resumed = _time_of_block(config, tokenizer_dir, tokenizer, StreamedCorpus(corpus, files, last))
    return Taken(prepared, prepared_bytes, seconds, count, peak_bytes(os.getpid()), worker, first, resumed)


def _time_of_block(config: JobConfig, folder: Path, tokenizer: Tokenizer, streamed: StreamedCorpus) -> float:
    start = time.perf_counter()
    with Crew(config, folder, tokenizer, 1, WorkLimits()) as crew:
        next(crew.map(iter([("next_sequences", streamed)]), lambda: None))
        return time.perf_counter() - start


def _turn(megabytes: int, tokenizer_dir: Path) -> Taken:
    with tempfile.TemporaryDirectory() as name:
        write_corpus(Path(name), megabytes)
        argv = [sys.executable, "-m", "benchmarks.corpus_stream", "--turn", name, str(tokenizer_dir)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        found = subprocess.run(argv, stdout=subprocess.PIPE, env=environment, check=True)
        return Taken(**json.loads(found.stdout))


def main(megabytes: int = 100, tokenizer_dir: Path | None = None) -> list[Row]:
    """Measures with the built-in model's tokenizer, or that of a folder."""
    if tokenizer_dir is None:
        home = Path(os.environ.get("FTF_HOME", "~/.finetuneflow")).expanduser()
        tokenizer_dir = Catalogue(home, {}).fetch("smollm2-135m").path
    tenth, whole = _turn(max(megabytes // 10, 1), tokenizer_dir), _turn(megabytes, tokenizer_dir)
    mib = 2**20
    rows = []
    for what, small, large in (
        ("reading process", tenth.reader_bytes, whole.reader_bytes),
        ("tokenising process", tenth.worker_bytes, whole.worker_bytes),
        ("process that prepares", tenth.prepare_bytes, whole.prepare_bytes),
    ):
        beside = f"{large / mib:.0f} MiB with {megabytes} MB of text, {small / mib:.0f} MiB with a tenth"
        rows.append(Row(f"peak memory of the {what}, against a tenth", large / small, "x", f"<= {_FLAT}", beside))
    sequences = f"{whole.num_sequences:,} sequences of 1,024 tokens in {whole.seconds:.0f} s"
    rows.append(Row("streamed", megabytes / whole.seconds, "MB/s", "", sequences))
    beside = (
        f"{whole.prepare_seconds:.1f} s, {tenth.prepare_seconds:.1f} s with a tenth: reads all, tokenises beginnings"
    )
    rows.append(Row("prepared", megabytes / whole.prepare_seconds, "MB/s", "", beside))
    beside = f"the last block after {whole.resumed_seconds:.1f} s, the first one after {whole.first_seconds:.1f} s"
    rows.append(Row("time to resume at the end", whole.resumed_seconds / whole.first_seconds, "x", "<= 1.5", beside))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=10_000, help="size of the corpus in megabytes")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer; default: that of the built-in model")
    parser.add_argument("--turn", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn:
        print(json.dumps(asdict(measure(*given.turn))))
    else:
        show(main(given.mb, given.tokenizer))
