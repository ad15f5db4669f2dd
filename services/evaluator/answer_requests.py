"""Checks requests for answers, and converts them for the child that generates."""

import secrets
from pathlib import Path
from typing import Any, Final

from chassis.errors import InvalidArgument
from engine.errors import Violation
from finetuneflow.v1.evaluator_service_pb2 import GenerateRequest
from services.evaluator.resident.messages import Ask
from services.path_fields import described, path_violations, sha256_violations, tenant_violations

_MAX_TEXT_BYTES: Final = 256 * 1024
_MAX_SYSTEM_BYTES: Final = 16 * 1024
_MAX_MESSAGES: Final = 1000
_MAX_NEW_TOKENS: Final = 4096
_DEFAULT_NEW_TOKENS: Final = 256
_MAX_TEMPERATURE: Final = 2.0
_MAX_STOPS: Final = 8
_MAX_STOP_CHARACTERS: Final = 256
_ROLES: Final = ("system", "user", "assistant")


def check_request(request: GenerateRequest) -> None:
    """Raises InvalidArgument for a request with a field that is missing or out of its range."""
    found = _conversation_violations(request) + _range_violations(request) + _model_violations(request)
    if found:
        raise InvalidArgument("INVALID_REQUEST", described(found), found)


def ask_of(request: GenerateRequest, adapter_dir: Path | None, *, as_conversation: bool) -> Ask:
    """Returns a checked request for the child. A prompt is a conversation or, if the model was trained on plain text,
    the text that the model continues."""
    served = request.served_model
    messages: list[dict[str, Any]] = [{"role": each.role, "content": each.content} for each in request.messages]
    if not messages and as_conversation:
        messages = [{"role": "user", "content": request.prompt}]
    return Ask(
        tenant=served.tenant,
        adapter_dir=adapter_dir,
        chat_template=served.chat_template if served.HasField("chat_template") else None,
        system_prompt=request.system_prompt or served.system_prompt,
        messages=messages,
        text=request.prompt,
        max_new_tokens=request.max_new_tokens if request.HasField("max_new_tokens") else _DEFAULT_NEW_TOKENS,
        temperature=request.temperature,
        top_p=request.top_p if request.HasField("top_p") else 1.0,
        seed=request.seed if request.HasField("seed") else secrets.randbits(63),
        stop=list(request.stop),
        logprobs=request.logprobs,
    )


def _conversation_violations(request: GenerateRequest) -> list[Violation]:
    found = []
    messages = request.messages
    if messages and request.prompt:
        found.append(Violation("prompt", "conflicts with messages; send one of the two."))
    if not messages and not request.prompt:
        found.append(Violation("prompt", "is required without messages."))
    if len(messages) > _MAX_MESSAGES:
        found.append(Violation("messages", f"has {len(messages):,} messages; at most {_MAX_MESSAGES:,} are accepted."))
    size = len(request.prompt.encode()) + sum(len(each.content.encode()) for each in messages)
    if size > _MAX_TEXT_BYTES:
        field = "messages" if messages else "prompt"
        found.append(Violation(field, f"has {size:,} bytes; at most {_MAX_TEXT_BYTES:,} are accepted."))
    if (size := len(request.system_prompt.encode())) > _MAX_SYSTEM_BYTES:
        found.append(Violation("system_prompt", f"has {size:,} bytes; at most {_MAX_SYSTEM_BYTES:,} are accepted."))
    for index, each in enumerate(messages):
        if each.role not in _ROLES:
            problem = f"is {each.role[:40]!r}; it must be one of {', '.join(_ROLES)}."
            found.append(Violation(f"messages[{index}].role", problem))
        elif not each.content and each.role == "user":
            found.append(Violation(f"messages[{index}].content", "is empty."))
        elif each.role == "system" and index > 0:
            found.append(Violation(f"messages[{index}].role", "is system; only the first message may be."))
    if messages and messages[0].role == "system" and request.system_prompt:
        found.append(Violation("system_prompt", "conflicts with the system message; send one of the two."))
    if messages and messages[-1].role != "user":
        found.append(Violation(f"messages[{len(messages) - 1}].role", "of the last message must be user."))
    return found


def _range_violations(request: GenerateRequest) -> list[Violation]:
    found = []
    if request.HasField("max_new_tokens") and not 1 <= request.max_new_tokens <= _MAX_NEW_TOKENS:
        problem = f"is {request.max_new_tokens}; it must be in [1, {_MAX_NEW_TOKENS}]."
        found.append(Violation("max_new_tokens", problem))
    if not 0 <= request.temperature <= _MAX_TEMPERATURE:
        found.append(Violation("temperature", f"is {request.temperature:g}; it must be in [0, {_MAX_TEMPERATURE:g}]."))
    if request.HasField("top_p") and not 0 < request.top_p <= 1:
        found.append(Violation("top_p", f"is {request.top_p:g}; it must be in (0, 1]."))
    if len(request.stop) > _MAX_STOPS:
        found.append(Violation("stop", f"has {len(request.stop)} texts; at most {_MAX_STOPS} are accepted."))
    for index, text in enumerate(request.stop):
        if not 1 <= len(text) <= _MAX_STOP_CHARACTERS:
            problem = f"has {len(text):,} characters; it must have 1 to {_MAX_STOP_CHARACTERS}."
            found.append(Violation(f"stop[{index}]", problem))
    return found


def _model_violations(request: GenerateRequest) -> list[Violation]:
    """Checks what the gateway has filled in; parts of it become paths."""
    served = request.served_model
    if not served.base_model.id:
        return [Violation("served_model", "is missing; ask the gateway, which knows the models.")]
    found: list[Violation] = []
    for path, sha256, name in (
        (served.checkpoint_path, served.checkpoint_manifest_sha256, "checkpoint"),
        (served.shards_path, served.shards_manifest_sha256, "shards"),
    ):
        if not path:
            continue
        found += tenant_violations(served.tenant, "served_model.tenant")
        found += path_violations(path, f"served_model.{name}_path")
        found += sha256_violations(sha256, f"served_model.{name}_manifest_sha256")
    return found
