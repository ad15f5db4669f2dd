"""Forms of the rows that a model was trained on: conversations, plain text, or both."""

from dataclasses import dataclass
from typing import Self

from finetuneflow.v1.stage_result_pb2 import DataStatistics
from services.exporter.worker.child_input import ExportInput

_CONVERSATIONS = {"chat", "question_answer", "instruction"}
_TEXTS = {"text", "tokenized"}


@dataclass(frozen=True)
class RowForms:
    """The forms that occur; at least one of the two."""

    chat: bool
    """Some rows are conversations, which the chat template writes."""
    plain: bool
    """Some rows are plain text, which no template changes."""

    @classmethod
    def of(cls, child_input: ExportInput) -> Self:
        """Reads the forms of the job's training data."""
        return cls.of_data(child_input.preflight.training_data)

    @classmethod
    def of_data(cls, data: DataStatistics) -> Self:
        """Reads the forms from the statistics of preflight. Rows of prompt_completion have either form: only those of
        conversations have roles."""
        formats = set(data.format.split(", "))
        chat = bool(data.roles) or bool(formats & _CONVERSATIONS)
        return cls(chat, not chat or bool(formats & _TEXTS))
