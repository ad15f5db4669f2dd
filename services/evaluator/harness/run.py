"""Runs lm-evaluation-harness: base model first, then the tuned one, each on one task after the other."""

import importlib.metadata
import logging
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import numpy
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerFast

from chassis.child.out_of_memory import reason_of
from chassis.child.phases import Phases
from chassis.child.pipe import Cancelled, EventSink
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from finetuneflow.v1.stage_result_pb2 import HarnessMetric, HarnessResult
from services.evaluator.harness.harness_input import HarnessInput
from services.evaluator.worker.child_input import Side
from services.evaluator.worker.models import DTYPES, Form, Models

PHASE: Final = "harness"
# The harness's own default seeds, so that a task draws the same examples as anywhere else.
_SEED, _OTHER_SEED = 0, 1234
_ADVICE = "Remove it from evaluation.harness_tasks, or ask the operator to correct it."

Measured = tuple[float | None, float | None]
"""A value and its standard error."""


def run(harness_input: HarnessInput, sink: EventSink) -> HarnessResult:
    """Measures the models on the tasks. Raises JobError("HARNESS_TASK_FAILED"), which names the task."""
    torch.set_num_threads(harness_input.threads)
    os.chdir(harness_input.folder)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    sides = {"base": harness_input.base, "tuned": harness_input.tuned}
    measured = {name: side for name, side in sides.items() if side is not None}
    progress = Progress(Phases(sink, (PHASE,), pausable=False), len(measured) * len(harness_input.tasks))
    models = Models(sink)
    with sink.ticking():
        manager = TaskManager(include_path=str(harness_input.folder), include_defaults=False)
    result = HarnessResult(version=importlib.metadata.version("lm-eval"), limit=harness_input.limit)
    _, result.chat_template = _tokenizer(harness_input.tuned, harness_input.chat_template)
    found: dict[tuple[str, str, str], HarnessMetric] = {}
    for name, side in measured.items():
        for metric, (value, stderr) in _side(harness_input, side, models, manager, progress):
            kept = found.setdefault((metric.task, metric.metric, metric.filter), metric)
            for field, number in ((name, value), (f"{name}_stderr", stderr)):
                if number is not None:
                    setattr(kept, field, number)
    result.metrics.extend(found.values())
    return result


def _side(
    harness_input: HarnessInput, side: Side, models: Models, manager: Any, progress: "Progress"
) -> Iterator[tuple[HarnessMetric, Measured]]:
    """Yields the metrics of one model."""
    progress.began(harness_input.tasks[0], side.id)
    form = Form(DTYPES[harness_input.precision], harness_input.device, harness_input.quantization)
    model = models.get(side, form)
    tokenizer, has_template = _tokenizer(side, harness_input.chat_template)
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=harness_input.batch_size)
    progress.follow(lm, model)
    for task in harness_input.tasks:
        progress.began(task, side.id)
        try:
            measured = _measured(lm, manager, task, harness_input.limit, chat_template=has_template)
        except Exception as error:
            # A task's file, its data and the code that it names may raise anything.
            if reason_of(error) or isinstance(error, Cancelled):
                raise
            said = " ".join(f"{type(error).__name__}: {error}".split())[:1000]
            message = f"The task {task} of lm-evaluation-harness failed with {side.id}: {said}"
            raise JobError("HARNESS_TASK_FAILED", message, _ADVICE) from error
        progress.ended()
        yield from _values(measured)


class Progress:
    """Reports the share of all requests, tasks weighing the same."""

    def __init__(self, phases: Phases, num_tasks: int) -> None:
        """`num_tasks` counts each task once for each model."""
        self._phases = phases
        self._num_tasks = num_tasks
        self._num_ended = self._done = self._total = 0

    def began(self, task: str, model: str) -> None:
        """Enters the phase for a task of a model."""
        self._done = self._total = 0
        self._phases.enter(PHASE, f"{task}, {model}", self._num_ended / self._num_tasks)

    def ended(self) -> None:
        """Counts a task that has ended."""
        self._num_ended += 1
        self._phases.advance(PHASE, self._num_ended / self._num_tasks)

    def follow(self, lm: Any, model: Any) -> None:
        """Counts the requests that the harness sends to a model, and ticks with each computed token."""
        model.register_forward_hook(lambda *_: self._phases.check())
        for name in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
            setattr(lm, name, self._asked(getattr(lm, name)))
        for name in ("_model_call", "_model_generate"):
            setattr(lm, name, self._answered(getattr(lm, name)))

    def _asked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def ask(requests: list[Any], *args: Any, **options: Any) -> Any:
            self._total += len(requests)
            return method(requests, *args, **options)

        return ask

    def _answered(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def answer(*args: Any, **options: Any) -> Any:
            answers = method(*args, **options)
            rows = next(each for each in (*args, *options.values()) if isinstance(each, torch.Tensor))
            self._done += len(rows)
            # Requests with the same context share a call.
            share = min(1.0, self._done / self._total) if self._total else 0.0
            self._phases.advance(PHASE, min(0.999, (self._num_ended + share) / self._num_tasks))
            return answers

        return answer


def _tokenizer(side: Side, chat_template: str | None) -> tuple[Any, bool]:
    """Returns the tokenizer, and True if it has a chat template."""
    read = Tokenizer(side.model.path, chat_template)
    fast = PreTrainedTokenizerFast.from_pretrained(str(side.model.path))
    has_template = chat_template is not None or read.has_own_template
    fast.chat_template = read.template if has_template else None
    return fast, has_template


def _measured(lm: Any, manager: Any, name: str, limit: int | None, *, chat_template: bool) -> Mapping[str, Any]:
    """Runs a task, group or tag, with the defaults of the harness's own command."""
    random.seed(_SEED)
    numpy.random.seed(_OTHER_SEED)
    torch.manual_seed(_OTHER_SEED)
    loaded = manager.load([name])
    for task in loaded["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_OTHER_SEED)
    measured: Mapping[str, Any] = evaluate(
        lm=lm,
        task_dict=loaded,
        limit=limit,
        log_samples=False,
        apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )
    return measured


def _values(measured: Mapping[str, Any]) -> Iterator[tuple[HarnessMetric, Measured]]:
    """Yields each metric of a run, without values, and its value with its standard error."""
    num_rows = {name: int(count["effective"]) for name, count in measured["n-samples"].items()}
    for name, children in measured.get("group_subtasks", {}).items():
        num_rows.setdefault(name, sum(num_rows.get(child, 0) for child in children))
    for task, values in {**measured.get("groups", {}), **measured["results"]}.items():
        version = measured["versions"].get(task)
        # What the harness says of a file without a version, and of a group.
        stated = "" if version in (None, "Yaml", "N/A") else str(version)
        for key, value in values.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            found = HarnessMetric(
                task=task,
                task_version=stated,
                metric=metric,
                filter="" if filter_ == "none" else filter_,
                num_rows=num_rows.get(task, 0),
                num_fewshot=int(measured["n-shot"].get(task, 0)),
            )
            better = measured["higher_is_better"].get(task, {}).get(metric)
            if better is not None:
                found.higher_is_better = better
            yield found, (_number(value), _number(values.get(f"{metric}_stderr,{filter_}")))


def _number(value: Any) -> float | None:
    # A standard error may be "N/A".
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else None
