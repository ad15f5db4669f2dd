"""Critical questions: prompts with graders, kept as a dataset of their own, that every model of a task is asked."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.config.graders import CompareModel, Grader, grader, item_paths, value_at
from engine.data.validation import SHOWN
from engine.errors import JobError, Violation

MAX_QUESTIONS: Final = 1000
PASS_GRADE: Final = 0.5
"""A question is passed if each of its grades is at least this."""


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: str = Field(pattern="^(system|user|assistant)$")
    content: str


class _Row(BaseModel):
    # Columns of the caller's own are values for graders.
    model_config = ConfigDict(extra="allow")

    prompt: str | None = Field(default=None, min_length=1, max_length=64 * 1024)
    messages: list[_Turn] | None = Field(default=None, min_length=1, max_length=100)
    graders: list[dict[str, Any]] = Field(min_length=1, max_length=16)
    must_pass: bool = Field(default=False, strict=True)


@dataclass(frozen=True)
class CriticalQuestion:
    """One question."""

    messages: list[dict[str, str]]
    graders: Sequence[Grader]
    must_pass: bool
    item: dict[str, Any]
    """The row's columns."""

    @property
    def text(self) -> str:
        """The last turn."""
        return self.messages[-1]["content"]


def read_questions(path: Path) -> list[CriticalQuestion]:
    """Reads a JSON Lines file of critical questions.

    Raises JobError("BAD_QUESTIONS") with one violation for each line that is not one; at most SHOWN of them.
    """
    found: list[CriticalQuestion] = []
    violations: list[Violation] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found.append(_question(json.loads(line)))
            except (ValueError, RecursionError) as error:
                violations.append(Violation(f"evaluation.questions row {number}", _problem(error)))
            if len(found) > MAX_QUESTIONS:
                break
    if not found and not violations:
        violations.append(Violation("evaluation.questions", "the file has no questions."))
    if len(found) > MAX_QUESTIONS:
        violations.append(Violation("evaluation.questions", f"at most {MAX_QUESTIONS:,} questions are asked."))
    if violations:
        first = violations[0]
        more = f" And {len(violations) - 1:,} more." * (len(violations) > 1)
        raise JobError(
            "BAD_QUESTIONS",
            f"The critical questions cannot be used: {first.field}: {first.description}{more}",
            "Correct the file, upload it again, and name the new dataset in evaluation.questions.",
            violations[:SHOWN],
        )
    return found


def _question(values: Any) -> CriticalQuestion:
    row = _Row.model_validate(values)
    if (row.prompt is None) == (row.messages is None):
        raise ValueError("it must have either prompt or messages")
    messages = [turn.model_dump() for turn in row.messages or [_Turn(role="user", content=row.prompt or "")]]
    if messages[-1]["role"] != "user":
        raise ValueError("the last turn of messages must be the user's")
    graders = []
    for index, value in enumerate(row.graders):
        try:
            read = grader({"name": str(index), **value})
        except ValueError as error:
            raise ValueError(f"graders[{index}]: {error}") from None
        if isinstance(read, CompareModel):
            raise ValueError(f"graders[{index}]: compare_model compares two answers; a question grades one")
        for path in item_paths(read):
            if value_at(path, dict(values)) is None:
                raise ValueError(f"graders[{index}]: the row has no {path}")
        graders.append(read)
    return CriticalQuestion(messages, graders, row.must_pass, dict(values))


def _problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        detail = error.errors()[0]
        return f"{'.'.join(map(str, detail['loc'])) or 'row'}: {detail['msg']}."
    return "it is no JSON object." if isinstance(error, json.JSONDecodeError) else f"{error}."
