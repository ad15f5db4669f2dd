"""The whole of stage 3, in time order: measures both models on the same rows, compares them, decides by the gate.

Without a model to compare with, the same is done with one model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from engine.config.evaluation import GENERAL
from engine.config.graders import BASE
from engine.data.shards import read_shards
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from engine.evaluation.held_out import HeldOutRow, answered_rows, read_held_out
from engine.evaluation.questions import CriticalQuestion, read_questions
from engine.evaluation.sets import prepare_regression
from engine.evaluation.verdicts import cut_answers
from engine.model.score import Row
from finetuneflow.v1.event_pb2 import ArtifactSaved
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from services.evaluator.worker.child_input import EvaluationInput, Side
from services.evaluator.worker.compare import Compare
from services.evaluator.worker.harness_process import HARNESS, add_harness
from services.evaluator.worker.judge import GRADING, Judge
from services.evaluator.worker.measure import Measuring
from services.evaluator.worker.measurements import KIND, Measurements, RowLoss, row_hash
from services.evaluator.worker.models import Form, Models, form_of
from services.evaluator.worker.rows import measured_rows, write_rows
from services.evaluator.worker.samples import add_samples, samples
from services.questions import Question, conversation_ids, prompts, row_question

PHASES = (
    "loading_model",
    "scoring_base",
    "answering_base",
    "scoring_tuned",
    "answering_tuned",
    "scoring_quantized",
    "comparing",
    GRADING,
    HARNESS,
)
PHASES_ALONE = ("loading_model", "scoring", "answering", "comparing", GRADING, HARNESS)
"""Phases if only one model is measured."""
ROWS_FILE = "evaluation_rows.jsonl"
ROWS_KIND = "evaluation_rows"


_Value = TypeVar("_Value")


@dataclass(frozen=True)
class Asked:
    """Prompts of both models: held-out rows, the caller's prompts, critical questions, in this order."""

    rows: list[int]
    """Index of each held-out row that is answered."""
    shown: list[Question]
    """Those rows, then the caller's prompts."""
    critical: list[CriticalQuestion]
    prompts: list[list[int]]
    """Token ids of everything that is asked."""


def evaluate(child_input: EvaluationInput, sink: EventSink) -> EvaluationResult:
    """Measures both models and compares them; an empty result where evaluation is switched off. `prepare_inputs` has
    read the rows."""
    config, base, tuned = child_input.config, child_input.base, child_input.tuned
    if not config.evaluation.enabled:
        return EvaluationResult()
    torch.set_num_threads(child_input.threads)
    # A pause takes effect after this stage: it is shorter than to do it again.
    phases = Phases(sink, PHASES_ALONE if base is None else PHASES, pausable=False)
    phases.enter("loading_model", tuned.model.id)
    tokenizer = Tokenizer(tuned.model.path, config.chat_template)
    if base is not None:
        _refuse_other_tokenizer(base, tuned)
    texts = read_held_out(child_input.data_dir / "eval_rows.jsonl")
    rows: list[Row] = list(read_shards(child_input.data_dir / "eval")) if texts else []
    general, finding = _regression_rows(child_input, sink)
    asked = _asked(child_input, texts, tokenizer)
    form = form_of(config, base, tuned, sink)
    publish = partial(_publish, sink, child_input.out_dir)
    folder = child_input.out_dir / "measurements" / tuned.model.weights_sha256[:16]
    kept = Measurements(child_input.measurements, folder, partial(publish, KIND))
    models = Models(sink)
    measuring = Measuring(models, kept, phases)

    answer = (config.evaluation.max_new_tokens, sorted(tokenizer.special_ids))
    base_losses: list[RowLoss] | None = None
    base_answers: list[list[int]] | None = None
    if base is not None:
        base_losses = measuring.losses("scoring_base", base, form, [*rows, *general])
        base_answers = measuring.answers("answering_base", base, form, asked.prompts, *answer)
    which = "" if base is None else "_tuned"
    tuned_losses = measuring.losses(f"scoring{which}", tuned, form, [*rows, *general])
    tuned_answers = measuring.answers(f"answering{which}", tuned, form, asked.prompts, *answer)
    as_trained = None
    if tuned.trained_on and form.quantization is None:
        trained_form = Form(form.dtype, form.on, tuned.trained_on)
        as_trained = measuring.losses("scoring_quantized", tuned, trained_form, rows)

    phases.enter("comparing", f"{len(rows)} rows")
    after = [tokenizer.decode(ids).strip() for ids in tuned_answers]
    before = None if base_answers is None else [tokenizer.decode(ids).strip() for ids in base_answers]
    losses = _part(base_losses, end=len(rows)), tuned_losses[: len(rows)]
    answers = _part(before, end=len(asked.rows)), after[: len(asked.rows)]
    judge = Judge({BASE: tuned if base is None else base, **child_input.judges}, form, measuring)
    measured_texts = measured_rows(texts, asked.rows, losses, answers)
    comparing = Compare(config.evaluation, measured_texts, judge.ask, sink, (base, tuned))
    first = len(asked.shown)
    questions = [tokenizer.decode(ids) for ids in asked.prompts[first:]]
    comparing.add_questions(asked.critical, questions, _part(before, first), after[first:])
    comparing.add_regression(_part(base_losses, len(rows)), tuned_losses[len(rows) :], finding)
    result = comparing.result(as_trained)
    for side, ids in ((base, base_answers), (tuned, tuned_answers)):
        if side is not None and ids is not None:
            lengths = [len(answer_ids) for answer_ids in ids[: len(asked.rows)]]
            result.findings.extend(cut_answers(side.id, lengths, config.evaluation.max_new_tokens))
    result.findings.extend(child_input.findings)
    result.precision, result.weights, result.num_reused = form.precision, form.weights, measuring.num_reused
    measured = [*rows, *general]
    result.rows_hash = row_hash(*(row["input_ids"] for row in measured), *asked.prompts, [answer[0]])
    if comparing.rows:
        write_rows(comparing.rows, child_input.out_dir / ROWS_FILE)
        publish(ROWS_KIND, child_input.out_dir / ROWS_FILE)
        result.rows_path = ROWS_FILE
    if config.evaluation.harness_tasks:
        # The other process loads the models again.
        models.release()
        add_harness(result, child_input, form, sink, phases)
    shown = [*range(min(config.evaluation.num_samples, len(asked.rows))), *range(len(asked.rows), first)]
    tuned_shown = [tuned_answers[index] for index in shown]
    base_shown = None if base_answers is None else [base_answers[index] for index in shown]
    made = samples([asked.shown[index] for index in shown], tuned_shown, base_shown, tokenizer)
    for sample in made:
        sink.emit(sample)
    add_samples(result, made)
    return result


def _part(values: Sequence[_Value] | None, start: int = 0, end: int | None = None) -> Sequence[_Value] | None:
    return None if values is None else values[start:end]


def _asked(child_input: EvaluationInput, texts: Sequence[HeldOutRow], tokenizer: Tokenizer) -> Asked:
    config, settings = child_input.config, child_input.config.evaluation
    rows = answered_rows(texts, settings.max_rows, settings.num_samples, config.seed)
    shown = [row_question(texts[index], tokenizer) for index in rows]
    shown += prompts(config, child_input.data_dir, tokenizer)
    critical = [] if child_input.questions is None else read_questions(child_input.questions)
    ids = [question.prompt for question in shown]
    ids += [conversation_ids(question.messages, config.system_prompt, tokenizer) for question in critical]
    # The end of a prompt that is too long is what asks the question.
    wanted, context = settings.max_new_tokens, child_input.tuned.model.context_length
    room = max((context or wanted + config.hyperparameters.max_length) - wanted, 1)
    return Asked(rows, shown, critical, [prompt[-room:] for prompt in ids])


def _refuse_other_tokenizer(base: Side, tuned: Side) -> None:
    """Raises JobError: a loss is one of tokens, so only models with the same tokens can be compared by it."""
    files = [side.model.path / "tokenizer.json" for side in (base, tuned)]
    if files[0] != files[1] and files[0].read_bytes() != files[1].read_bytes():
        message = f"{base.id} and {tuned.id} have different tokenizers, so their losses cannot be compared."
        raise JobError("MODELS_NOT_COMPARABLE", message, "Compare models that were made from the same base model.")


def _regression_rows(child_input: EvaluationInput, sink: EventSink) -> tuple[list[Row], str]:
    """Returns the rows of the regression set, and a finding where the general one does not fit the model."""
    config, folder = child_input.config, child_input.out_dir / ".regression"
    model = child_input.tuned.model.path
    with sink.ticking():
        try:
            if prepare_regression(config, child_input.regression, model, folder, sink.tick):
                return list(read_shards(folder / "eval")), ""
        except JobError as error:
            # Nobody asked for the general set, so it refuses nothing.
            if config.evaluation.regression != GENERAL:
                raise
            return [], f"What the model has lost was not measured: the general set cannot be read. {error.message}"
    return [], ""


def _publish(sink: EventSink, out_dir: Path, kind: str, path: Path) -> None:
    sink.emit(ArtifactSaved(path=str(path.relative_to(out_dir)), kind=kind, media_type="application/jsonl"))
