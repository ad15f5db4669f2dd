"""Measures time and memory of validating and preparing a file of rows.

    python -m benchmarks.prepare [--mib 1024] [--rounds 2] [--processes N]

The baseline is `encode_batch` of the same tokenizer on the same conversations, rendered beforehand, in as many
processes: a lower bound for any preparation. The two take turns on a file of at most 64 MiB. Preparation is timed from
the call to the files on disk, including the start of its processes; the baseline excludes the start. CPU seconds are
shown beside wall seconds, because they depend less on other load. With `--mib` above 64 a file of that size is prepared
too, to compare its peak memory with that of 64 MiB: proportional set sizes of all processes together.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing import Barrier, Process, SimpleQueue
from pathlib import Path
from typing import Any

import psutil

from benchmarks.table import Row, show
from engine.catalogue import Catalogue
from engine.config.job import job_config
from engine.data.files import read_rows
from engine.data.formats import Example, RowReader
from engine.data.prepare import prepare
from engine.data.rows import Row as DataRow
from engine.data.tokenizer import Tokenizer

_TURN_MIB = 64
_TEXTS_AT_ONCE = 500
_WORDS = Path(__file__).parent.parent / "examples" / "data" / "stdlib_qa_train.jsonl"
_TARGET = 0.8


@dataclass
class Taken:
    """The measurements of one turn."""

    seconds: float
    processor_seconds: float
    peak_bytes: int = 0


def write_rows(path: Path, mib: int) -> None:
    """Writes distinct questions and answers of 15 to 150 words, about 690 bytes each."""
    words = " ".join(text for line in _WORDS.open("rb") for text in json.loads(line).values()).split()
    chosen = random.Random(1)  # noqa: S311
    size = number = 0
    with path.open("w", encoding="utf-8") as file:
        while size < mib << 20:
            number += 1
            lengths = (chosen.randint(10, 70), chosen.randint(10, 80))
            question, answer = (" ".join(chosen.choices(words, k=length)) for length in lengths)
            size += file.write(json.dumps({"question": f"{question} ({number})?", "answer": answer}) + "\n")


def rendered(path: Path, tokenizer: Tokenizer) -> list[str]:
    """Returns the conversations of a file, rendered to text."""
    reader = RowReader({}, None)
    rows = (row for row in read_rows(path) if isinstance(row, DataRow))
    made = (example for row in rows for example in reader.read(row) if isinstance(example, Example))
    return [tokenizer.render(example.messages) for example in made]


def ours(path: Path, tokenizer_dir: Path, processes: int) -> Taken:
    """Prepares the file in this process and those that it starts."""
    config = job_config({"base_model": "m", "training_data": [{"dataset": "d"}]})
    with tempfile.TemporaryDirectory() as name:
        start, processor = time.perf_counter(), time.process_time()
        prepare(config, tokenizer_dir, {"d": path}, Path(name), lambda *_: None, processes=processes)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Taken(seconds, processor + children.ru_utime + children.ru_stime)


def theirs(path: Path, tokenizer_dir: Path, processes: int) -> Taken:
    """Runs `encode_batch` alone; every process has its share of the texts in memory before the clock starts."""
    begin: Any = Barrier(processes)
    taken: SimpleQueue[tuple[float, float]] = SimpleQueue()
    workers = [
        Process(target=_encode, args=(path, tokenizer_dir, number, processes, begin, taken))
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [taken.get() for _ in workers]
    return Taken(max(seconds for seconds, _ in found), sum(processor for _, processor in found))


def _encode(path: Path, folder: Path, number: int, processes: int, begin: Any, taken: Any) -> None:
    tokenizer = Tokenizer(folder)
    texts = rendered(path, tokenizer)[number::processes]
    fast = tokenizer._bare
    begin.wait()
    start, processor = time.perf_counter(), time.process_time()
    for at in range(0, len(texts), _TEXTS_AT_ONCE):
        fast.encode_batch(texts[at : at + _TEXTS_AT_ONCE], add_special_tokens=False)
    taken.put((time.perf_counter() - start, time.process_time() - processor))


def _turn(kind: str, path: Path, tokenizer_dir: Path, processes: int) -> Taken:
    """Runs one turn in a new process and measures its memory."""
    argv = [sys.executable, "-m", "benchmarks.prepare", "--turn", kind, str(path), str(tokenizer_dir)]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    peak = 0
    with subprocess.Popen([*argv, "--processes", str(processes)], stdout=subprocess.PIPE, env=environment) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            held = 0
            for one in (watched, *watched.children(recursive=True)):
                try:
                    held += one.memory_full_info().pss
                except psutil.Error:
                    continue
            peak = max(peak, held)
            time.sleep(0.2)
        assert process.stdout
        found = Taken(**json.load(process.stdout))
    found.peak_bytes = peak
    return found


def main(mib: int = 32, rounds: int = 2, processes: int = 0) -> list[Row]:
    """Measures with the built-in model's tokenizer."""
    processes = processes or len(os.sched_getaffinity(0))
    home = Path(os.environ.get("FTF_HOME", "~/.finetuneflow")).expanduser()
    tokenizer_dir = Catalogue(home, {}).fetch("smollm2-135m").path
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "rows.jsonl"
        write_rows(path, min(mib, _TURN_MIB))
        size = path.stat().st_size / 2**20
        turns = [(_turn("theirs", path, tokenizer_dir, processes), _turn("ours", path, tokenizer_dir, processes))
                 for _ in range(rounds)]  # fmt: skip
        speed = statistics.median(size / mine.seconds for _, mine in turns)
        bare = statistics.median(size / other.seconds for other, _ in turns)
        ratio = statistics.median(other.seconds / mine.seconds for other, mine in turns)
        of_processor = statistics.median(other.processor_seconds / mine.processor_seconds for other, mine in turns)
        peak = max(mine.peak_bytes for _, mine in turns)
        beside = f"{size:.0f} MiB of JSON lines: {speed:.1f} against {bare:.1f} MiB/s in {processes} processes"
        rows = [
            Row("rows validated and prepared, against encode_batch alone", ratio, "x", f">= {_TARGET}", beside),
            Row("the same per second of processor time", of_processor, "x", f">= {_TARGET}", f"{rounds} turns of each"),
            Row(f"peak memory of preparing {size:.0f} MiB", peak / 2**20, "MiB", "flat", f"{processes + 1} processes"),
        ]
        if mib > _TURN_MIB:
            write_rows(path, mib)
            whole = _turn("ours", path, tokenizer_dir, processes)
            beside = f"{mib / whole.seconds:.1f} MiB/s, {whole.seconds:.0f} s"
            rows.append(Row(f"peak memory of preparing {mib} MiB", whole.peak_bytes / 2**20, "MiB", "flat", beside))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds to take medians over")
    parser.add_argument("--processes", type=int, default=0, help="number of processes; 0: one per core")
    parser.add_argument("--turn", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.turn:
        what, file, folder = given.turn
        turn = {"ours": ours, "theirs": theirs}[what]
        print(json.dumps(asdict(turn(Path(file), Path(folder), given.processes))))
    else:
        show(main(given.mib, given.rounds, given.processes))
