"""Measures generation: batches against transformers, and the served model against one in this process.

`python -m benchmarks.generation`. All pairs are measured in turn in one run; only their ratios say something.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from benchmarks.table import Row, arguments, show
from engine.catalogue import Catalogue
from engine.data.tokenizer import Tokenizer
from engine.model.generate import generate
from engine.model.load import load_base
from engine.model_names import BUILT_IN
from finetuneflow import Client
from services.questions import conversation_ids
from standalone.ports import free_port

_QUESTIONS = Path(__file__).parents[1] / "examples" / "data" / "stdlib_qa_heldout.jsonl"
_PROMPTS = 32
_NEW_TOKENS = 128
"""The default of `evaluation.max_new_tokens`."""
_CALLERS = 8
_CALLERS_TOKENS = 48
_THREADS = 1
"""Threads of each side. Several threads on busy cores wait for each other, which would be measured instead."""


def main() -> list[Row]:
    rounds = arguments(rounds=3, seconds=0).rounds
    torch.set_num_threads(_THREADS)
    with tempfile.TemporaryDirectory() as home, _system(Path(home)) as client:
        model_dir = Catalogue(Path(home)).fetch(BUILT_IN).path
        model = load_base(model_dir, dtype=torch.float32, on="cpu")
        tokenizer = Tokenizer(model_dir)
        questions = [json.loads(line)["question"] for line in _QUESTIONS.read_text("utf-8").splitlines()[:_PROMPTS]]
        stops = sorted(tokenizer.special_ids)
        return [
            _batches(model, [_ids(text, tokenizer) for text in questions], stops, rounds),
            _first_token(client, model, questions, tokenizer, stops, rounds),
            _callers(client, questions, rounds),
        ]


def _ids(question: str, tokenizer: Tokenizer) -> list[int]:
    return conversation_ids([{"role": "user", "content": question}], None, tokenizer)


def _batches(model: Any, prompts: Sequence[list[int]], stops: list[int], rounds: int) -> Row:
    answers: dict[str, list[list[int]]] = {}

    def ours() -> None:
        answers["ours"] = generate(model, prompts, max_new_tokens=_NEW_TOKENS, stop_ids=stops)

    def theirs() -> None:
        answers["theirs"] = _transformers(model, prompts, stops)

    seconds = _in_turn(rounds, ours=ours, theirs=theirs)
    tokens = {name: sum(map(len, found)) for name, found in answers.items()}
    equal = sum(one == other for one, other in zip(answers["ours"], answers["theirs"], strict=True))
    speeds = {name: tokens[name] / seconds[name] for name in tokens}
    beside = f"{speeds['ours']:.1f} against {speeds['theirs']:.1f} tokens/s; {equal} of {len(prompts)} answers equal"
    return Row(f"{_PROMPTS} prompts, generate", speeds["ours"] / speeds["theirs"], "x transformers", ">= 1", beside)


def _transformers(model: Any, prompts: Sequence[list[int]], stops: list[int]) -> list[list[int]]:
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), stops[0])
    mask = torch.zeros_like(ids)
    for index, prompt in enumerate(prompts):
        ids[index, width - len(prompt) :] = torch.tensor(prompt)
        mask[index, width - len(prompt) :] = 1
    settings = GenerationConfig(
        max_new_tokens=_NEW_TOKENS, do_sample=False, eos_token_id=stops, pad_token_id=stops[0], repetition_penalty=1.0
    )
    with torch.inference_mode():
        output = model.generate(ids, attention_mask=mask, generation_config=settings)
    answers = []
    for row in output[:, width:].tolist():
        ends = [index for index, token in enumerate(row) if token in stops]
        answers.append(row[: ends[0]] if ends else row)
    return answers


def _first_token(
    client: Client, model: Any, questions: Sequence[str], tokenizer: Tokenizer, stops: list[int], rounds: int
) -> Row:
    def served(question: str) -> None:
        parts = client.models.generate(BUILT_IN, question, max_new_tokens=8)
        next(part for part in parts if part)
        parts.close()

    def here(question: str) -> None:
        generate(model, [_ids(question, tokenizer)], max_new_tokens=1, stop_ids=stops)

    served(questions[0])
    texts = itertools.cycle(questions)
    seconds = _in_turn(4 * rounds, served=lambda: served(next(texts)), here=lambda: here(next(texts)))
    beside = f"{seconds['served'] * 1000:.0f} against {seconds['here'] * 1000:.0f} ms"
    return Row("first token of a warm model", seconds["served"] / seconds["here"], "x in process", "<= 1.2", beside)


def _callers(client: Client, questions: Sequence[str], rounds: int) -> Row:
    tokens: dict[str, int] = {}

    def call(question: str) -> int:
        (*_, last) = client.models.generate(BUILT_IN, question, max_new_tokens=_CALLERS_TOKENS)
        return last.usage.completion_tokens if last.usage else 0

    def one() -> None:
        tokens["one"] = call(questions[0])

    def many() -> None:
        with ThreadPoolExecutor(_CALLERS) as threads:
            tokens["many"] = sum(threads.map(call, questions[:_CALLERS]))

    seconds = _in_turn(rounds, one=one, many=many)
    speeds = {name: tokens[name] / seconds[name] for name in tokens}
    beside = f"{speeds['many']:.1f} against {speeds['one']:.1f} tokens/s"
    return Row(f"{_CALLERS} concurrent callers", speeds["many"] / speeds["one"], "x one caller", ">= 2", beside)


def _in_turn(rounds: int, **tasks: Callable[[], None]) -> dict[str, float]:
    """Returns the median seconds of each task, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for round_ in range(rounds + 1):
        for name, task in tasks.items():
            began = time.perf_counter()
            task()
            # The first round warms up.
            if round_:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


@contextlib.contextmanager
def _system(home: Path) -> Iterator[Client]:
    """A whole system on this machine, and a client of it."""
    port = free_port()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ftf")), "up", "--home", str(home), "--port", str(port), "--json"],
        env={**os.environ, "FTF_EVALUATOR_THREADS": str(_THREADS)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        for line in process.stdout:
            if json.loads(line)["state"] == "up":
                break
        with Client(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    show(main())
