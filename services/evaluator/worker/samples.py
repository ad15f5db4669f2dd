"""The answers of base and tuned model side by side."""

from collections.abc import Sequence

from chassis.events import MAX_EVENT_BYTES
from engine.data.tokenizer import Tokenizer
from finetuneflow.v1.stage_result_pb2 import EvaluationResult, InferenceSample
from services.questions import MAX_TEXT_BYTES, Question, cut


def samples(
    asked: Sequence[Question],
    tuned: Sequence[Sequence[int]],
    base: Sequence[Sequence[int]] | None,
    tokenizer: Tokenizer,
) -> list[InferenceSample]:
    """Questions with both answers (token ids), or without one of the base model; each text is cut at 10 KiB."""
    before = [""] * len(tuned) if base is None else [tokenizer.decode(ids).strip() for ids in base]
    return [
        InferenceSample(
            instruction=cut(question.instruction, MAX_TEXT_BYTES),
            input=cut(question.input, MAX_TEXT_BYTES),
            expected_output=cut(question.expected_output, MAX_TEXT_BYTES),
            model_output=cut(tokenizer.decode(after).strip(), MAX_TEXT_BYTES),
            output_length=len(after),
            base_output=cut(text, MAX_TEXT_BYTES),
        )
        for question, after, text in zip(asked, tuned, before, strict=True)
    ]


def add_samples(result: EvaluationResult, made: Sequence[InferenceSample]) -> None:
    """Puts the samples into the result, with texts as short as it takes for all of them to fit into one event."""
    limit = MAX_TEXT_BYTES
    while True:
        del result.samples[:]
        for sample in made:
            result.samples.add(
                instruction=cut(sample.instruction, limit),
                input=cut(sample.input, limit),
                expected_output=cut(sample.expected_output, limit),
                model_output=cut(sample.model_output, limit),
                output_length=sample.output_length,
                base_output=cut(sample.base_output, limit),
            )
        if result.ByteSize() <= MAX_EVENT_BYTES * 3 // 4:
            return
        limit //= 2
