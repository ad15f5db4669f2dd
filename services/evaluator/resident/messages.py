"""Messages between the supervisor and the resident child.

The supervisor writes an Ask to the file `<number>.json` in `asks_dir`, then the line `ask <number>` to the control
pipe; `leave <number>` ends an answer that is no longer wanted. The child sends Replies as JSON, one a frame. A reply
with the number 0 is about the child itself: the first says that the model is loaded, or why it cannot be.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from engine.config.job import Quantization
from services.child_input import ChildInput, ModelFiles, Strict


class ResidentInput(ChildInput):
    """Model and adapters that the child loads. Paths are absolute."""

    model: ModelFiles
    """The base model, whose tokenizer is used."""
    weights_dir: Path
    """Folder with config.json and the weights: the base model's, or a checkpoint of all weights."""
    quantization: Quantization | None
    asks_dir: Path
    threads: int = Field(ge=1)
    """Maximum number of torch's threads."""


class Ask(Strict):
    """A request for one answer."""

    tenant: str
    """Tenants take turns where the answers of all do not fit into one batch."""
    adapter_dir: Path | None
    """Folder of the adapter; its name tells adapters apart. None: the model without an adapter."""
    chat_template: str | None
    system_prompt: str
    messages: list[dict[str, Any]]
    """The conversation; empty for a plain text."""
    text: str
    """The text that is continued, if there are no messages."""
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: list[str]
    logprobs: bool


class Refusal(Strict):
    """An error of the caller, as a JobError has it."""

    reason: str
    message: str
    advice: str
    violations: list[tuple[str, str]]


class Reply(Strict):
    """A part of an answer."""

    number: int
    text: str = ""
    logprobs: list[tuple[int, str, float]] = Field(default=[])
    """Token id, its text, logarithm of its probability."""
    queued: bool = False
    """True if the answer waits for others."""
    finish_reason: Literal["", "stop", "length"] = ""
    prompt_tokens: int = 0
    """Set with the finish_reason, as are the completion_tokens."""
    completion_tokens: int = 0
    refusal: Refusal | None = None
