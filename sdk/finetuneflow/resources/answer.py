"""Text that a model generates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from finetuneflow.resources.convert import Resource
from finetuneflow.v1 import evaluator_service_pb2 as pb


@dataclass(frozen=True, kw_only=True)
class TokenLogprob(Resource):
    """A token of an answer with its probability."""

    id: int
    """Id in the model's vocabulary."""
    token: str
    """Its text alone. A part of a character is shown as U+FFFD."""
    logprob: float
    """Natural logarithm of the probability that the model gives it."""


@dataclass(frozen=True, kw_only=True)
class GenerationUsage(Resource):
    """Counts and times of one answer."""

    prompt_tokens: int
    """Tokens of the rendered prompt."""
    completion_tokens: int
    """Generated tokens, without the stop token."""
    time_to_first_token_seconds: float
    """Seconds from the arrival of the request to the first token, including the time to load the model."""


class AnswerPart(str):
    """A part of an answer. It is its text, so that parts can be printed and joined; a part that only tells a phase, or
    the usage at the end, may be empty."""

    __slots__ = ("finish_reason", "logprobs", "phase", "proto", "usage")

    phase: str
    """Step before the answer begins: `queued`, `fetching_model`, `fetching_checkpoint` or `loading_model`.
    Empty for a part of the answer."""
    finish_reason: str
    """`stop` or `length` in the last part, otherwise empty."""
    logprobs: tuple[TokenLogprob, ...]
    """The tokens decoded since the part before, if they were asked for."""
    usage: GenerationUsage | None
    """Set in the last part."""
    proto: pb.GenerateResponse
    """The complete message."""

    @classmethod
    def from_proto(cls, message: pb.GenerateResponse) -> Self:
        """Reads the part from `message`."""
        part = cls(message.text)
        part.proto = message
        part.phase, part.finish_reason = message.phase, message.finish_reason
        part.logprobs = tuple(TokenLogprob.from_proto(each) for each in message.logprobs)
        part.usage = GenerationUsage.from_proto(message.usage) if message.HasField("usage") else None
        return part
