"""Models that grade answers."""

from collections.abc import Mapping, Sequence
from typing import Final

from engine.data.tokenizer import Tokenizer
from engine.evaluation.graders import Turns
from services.evaluator.worker.child_input import Side
from services.evaluator.worker.measure import Measuring
from services.evaluator.worker.models import Form
from services.questions import conversation_ids

GRADING: Final = "grading"
"""Phase in which judges answer."""


class Judge:
    """Asks judges, greedily. Their answers are kept like those of the models that are compared."""

    def __init__(self, sides: Mapping[str, Side], form: Form, measuring: Measuring) -> None:
        self._sides = sides
        self._form = form
        self._measuring = measuring
        self._tokenizers: dict[str, Tokenizer] = {}

    def ask(self, model: str, max_tokens: int, conversations: Sequence[Turns]) -> list[str]:
        """Returns the answer to each conversation. Raises KeyError for a model that was not prepared."""
        side = self._sides[model]
        tokenizer = self._tokenizers.setdefault(model, Tokenizer(side.model.path, side.chat_template))
        room = (side.model.context_length or 1_000_000) - max_tokens
        prompts = [conversation_ids(turns, None, tokenizer)[-max(room, 1) :] for turns in conversations]
        stops = sorted(tokenizer.special_ids)
        answers = self._measuring.answers(GRADING, side, self._form, prompts, max_tokens, stops)
        return [tokenizer.decode(ids).strip() for ids in answers]
