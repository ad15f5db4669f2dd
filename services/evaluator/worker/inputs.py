"""Reads the rows and questions that an evaluation was asked for.

No torch is needed, so that a mistake in them is reported before it is imported and a model is loaded.
"""

from chassis.child.pipe import EventSink
from engine.data.prepare import prepare_evaluation
from engine.evaluation.questions import read_questions
from services.evaluator.worker.child_input import EvaluationInput


def prepare_inputs(child_input: EvaluationInput, sink: EventSink) -> None:
    """Tokenizes the rows that the evaluation was asked for, as preflight does, and checks the critical questions.

    Raises JobError for rows and questions that cannot be used.
    """
    if not child_input.config.evaluation.enabled:
        return
    if child_input.questions is not None:
        read_questions(child_input.questions)
    if not child_input.sources:
        return
    model, folder = child_input.tuned.model.path, child_input.data_dir

    def alive(phase: str, fraction: float | None) -> None:
        sink.tick()

    prepare_evaluation(child_input.config, child_input.sources, model, child_input.files, folder, alive)
