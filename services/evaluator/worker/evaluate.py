"""Evaluates base and tuned model on the same held-out rows and the same questions."""

import gc
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from safetensors import safe_open

from chassis.child.phases import Phases
from chassis.child.pipe import EventSink
from engine.data.shards import read_shards
from engine.data.tokenizer import Tokenizer
from engine.model import load
from engine.model.adapter import load_adapter
from engine.model.generate import PROMPTS_PER_BATCH, generate
from engine.model.score import Row, Score, score
from finetuneflow.v1.event_pb2 import Warning
from finetuneflow.v1.stage_result_pb2 import EvaluationResult
from services.evaluator.worker.child_input import EvaluationInput
from services.evaluator.worker.compare import add_samples, samples
from services.questions import Question, questions, room_for

PHASES = ("loading_model", "scoring_base", "answering_base", "scoring_tuned", "answering_tuned")


def evaluate(child_input: EvaluationInput, sink: EventSink) -> EvaluationResult:
    """Measures both models and shows their answers; an empty result where evaluation is switched off."""
    config, result = child_input.config, EvaluationResult()
    if not config.evaluation.enabled:
        return result
    torch.set_num_threads(child_input.threads)
    tokenizer = Tokenizer(child_input.model.path, config.chat_template)
    rows: list[Row] = (
        list(read_shards(child_input.data_dir / "eval")) if (child_input.data_dir / "eval").is_dir() else []
    )
    asked = questions(config, child_input.data_dir, tokenizer)
    answers: dict[str, list[list[int]]] = {}

    # A pause takes effect after this stage: it is shorter than to do it again.
    phases = Phases(sink, PHASES, pausable=False)
    phases.enter("loading_model", child_input.model.id)
    for name, model in _models(child_input, sink):
        if rows:
            phases.enter(f"scoring_{name}", f"{len(rows)} held-out row{'s' * (len(rows) != 1)}")
            measured = score(model, rows, partial(phases.advance, f"scoring_{name}"))
            _note(result, name, measured)
        if asked:
            answers[name] = _answer(model, asked, tokenizer, child_input, phases, name)
        # Or base and tuned weights of method full would be in memory together.
        del model

    if rows and not result.tuned_loss <= result.base_loss:  # also if it is NaN
        sink.emit(_worse(result))
    if asked:
        made = samples(asked, answers["tuned"], answers["base"], tokenizer)
        for sample in made:
            sink.emit(sample)
        add_samples(result, made)
    return result


def _models(child_input: EvaluationInput, sink: EventSink) -> Iterator[tuple[str, Any]]:
    """The base model, then the tuned one: the same weights with the adapter on them where there is one.

    Asked in this order, the base is what it is without any adapter; to switch an adapter off again would leave
    trained biases behind.
    """
    full = child_input.config.method == "full"
    on = "cpu" if child_input.config.resources.gpus == 0 else load.device()
    options: dict[str, Any] = {"dtype": torch.float32, "on": on}
    config = child_input.config
    if config.method == "qlora" and config.lora.init_lora_weights == "loftq":
        # These adapters contain what the quantisation has lost; on other weights they would add it a second time.
        options["quantization"] = config.quantization
        message = "LoftQ's adapter belongs to the quantized weights; both models are evaluated with these."
        advice = "Serve it on weights quantized in the same way, as the package's README.md does."
        sink.emit(Warning(reason="NOT_EVALUATED_IN_FP32", message=message, advice=advice))
    elif on == "cuda" and not _fits_in_float32(child_input):
        precision = child_input.config.hyperparameters.precision
        options["dtype"] = load.weights_dtype("lora", precision, on)
        options["quantization"] = child_input.config.quantization if child_input.config.method == "qlora" else None
        sink.emit(
            Warning(
                reason="NOT_EVALUATED_IN_FP32",
                message=f"The model does not fit into the GPU in float32; both models are evaluated in {precision}.",
                advice="Evaluate on a GPU with more memory to have figures in fp32.",
            )
        )
    with sink.ticking():
        model = load.load_base(child_input.model.path, **options)
    yield "base", model
    with sink.ticking():
        if full:
            del model
            gc.collect()
            torch.cuda.empty_cache()
            model = load.load_base(child_input.adapter_dir, **options)
        else:
            model = load_adapter(model, child_input.adapter_dir)
    yield "tuned", model


def _answer(
    model: Any, asked: list[Question], tokenizer: Tokenizer, child_input: EvaluationInput, phases: Phases, name: str
) -> list[list[int]]:
    wanted = child_input.config.evaluation.max_new_tokens
    context = getattr(model.config, "max_position_embeddings", None)
    longest = child_input.config.hyperparameters.max_length
    steps = wanted * math.ceil(len(asked) / PROMPTS_PER_BATCH)
    phases.enter(f"answering_{name}", f"{len(asked)} question{'s' * (len(asked) != 1)}")
    made = 0

    def on_tokens(_: list[int]) -> None:
        nonlocal made
        made += 1
        phases.advance(f"answering_{name}", min(made / steps, 1.0))

    prompts = [room_for(question, context, wanted, longest) for question in asked]
    stops = sorted(tokenizer.special_ids)
    answers = generate(model, prompts, max_new_tokens=wanted, stop_ids=stops, on_tokens=on_tokens)
    phases.advance(f"answering_{name}", 1.0)
    return answers


def _note(result: EvaluationResult, name: str, measured: Score) -> None:
    result.num_examples = measured.num_examples
    result.num_trained_tokens = measured.num_trained_tokens
    if name == "base":
        result.base_loss, result.base_perplexity = measured.loss, measured.perplexity
    else:
        result.tuned_loss, result.tuned_perplexity = measured.loss, measured.perplexity


def _worse(result: EvaluationResult) -> Warning:
    message = (
        f"The tuned model is worse than its base model: its loss on the held-out rows is {result.tuned_loss:.4f}, "
        f"that of the base model {result.base_loss:.4f}."
    )
    advice = (
        "Do not serve it. Lower hyperparameters.learning_rate, or check that the held-out rows are like the others."
    )
    return Warning(reason="TUNED_MODEL_WORSE", message=message, advice=advice)


def _fits_in_float32(child_input: EvaluationInput) -> bool:
    """Returns True if four-byte weights fit into the GPU's free memory and leave a third of it for the computation."""
    parameters = 0
    for path in child_input.model.path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            parameters += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    free: int = torch.cuda.mem_get_info()[0]
    return 4 * parameters * 1.5 < free
