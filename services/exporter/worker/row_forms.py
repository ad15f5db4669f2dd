"""Forms of the rows that a model was trained on: conversations, plain text, or both."""

from dataclasses import dataclass
from typing import Self

from services.exporter.worker.child_input import ExportInput

_CONVERSATIONS = {"chat", "question_answer", "instruction"}
_TEXTS = {"text", "tokenized"}


@dataclass(frozen=True)
class RowForms:
    """Which forms occur. At least one does."""

    chat: bool
    """Written by the chat template."""
    plain: bool
    """Taken as they are."""

    @classmethod
    def of(cls, spec: ExportInput) -> Self:
        """Reads what preflight counted. Rows of prompt_completion may have either form: turns are counted by role."""
        data = spec.preflight.training_data
        formats = set(data.format.split(", "))
        chat = bool(data.roles) or bool(formats & _CONVERSATIONS)
        return cls(chat, not chat or bool(formats & _TEXTS))
