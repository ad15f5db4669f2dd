from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GenerateRequest(_message.Message):
    __slots__ = ("model", "prompt", "system_prompt", "max_new_tokens", "temperature", "messages", "top_p", "seed", "stop", "logprobs", "served_model")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    SERVED_MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    prompt: str
    system_prompt: str
    max_new_tokens: int
    temperature: float
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    top_p: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    logprobs: bool
    served_model: ServedModel
    def __init__(self, model: _Optional[str] = ..., prompt: _Optional[str] = ..., system_prompt: _Optional[str] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., logprobs: bool = ..., served_model: _Optional[_Union[ServedModel, _Mapping]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ServedModel(_message.Message):
    __slots__ = ("tenant", "base_model", "checkpoint_path", "checkpoint_manifest_sha256", "checkpoint_step", "full", "chat_template", "system_prompt", "shards_path", "shards_manifest_sha256", "quantization", "exclusive")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_PATH_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    SHARDS_PATH_FIELD_NUMBER: _ClassVar[int]
    SHARDS_MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    base_model: _stage_result_pb2.BaseModelIdentity
    checkpoint_path: str
    checkpoint_manifest_sha256: str
    checkpoint_step: int
    full: bool
    chat_template: str
    system_prompt: str
    shards_path: str
    shards_manifest_sha256: str
    quantization: _fine_tuning_job_spec_pb2.QuantizationSpec
    exclusive: bool
    def __init__(self, tenant: _Optional[str] = ..., base_model: _Optional[_Union[_stage_result_pb2.BaseModelIdentity, _Mapping]] = ..., checkpoint_path: _Optional[str] = ..., checkpoint_manifest_sha256: _Optional[str] = ..., checkpoint_step: _Optional[int] = ..., full: bool = ..., chat_template: _Optional[str] = ..., system_prompt: _Optional[str] = ..., shards_path: _Optional[str] = ..., shards_manifest_sha256: _Optional[str] = ..., quantization: _Optional[_Union[_fine_tuning_job_spec_pb2.QuantizationSpec, _Mapping]] = ..., exclusive: bool = ...) -> None: ...

class GenerateResponse(_message.Message):
    __slots__ = ("text", "finish_reason", "phase", "logprobs", "usage")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    text: str
    finish_reason: str
    phase: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprob]
    usage: GenerationUsage
    def __init__(self, text: _Optional[str] = ..., finish_reason: _Optional[str] = ..., phase: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprob, _Mapping]]] = ..., usage: _Optional[_Union[GenerationUsage, _Mapping]] = ...) -> None: ...

class TokenLogprob(_message.Message):
    __slots__ = ("id", "token", "logprob")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    id: int
    token: str
    logprob: float
    def __init__(self, id: _Optional[int] = ..., token: _Optional[str] = ..., logprob: _Optional[float] = ...) -> None: ...

class GenerationUsage(_message.Message):
    __slots__ = ("prompt_tokens", "completion_tokens", "time_to_first_token_seconds")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_FIRST_TOKEN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    completion_tokens: int
    time_to_first_token_seconds: float
    def __init__(self, prompt_tokens: _Optional[int] = ..., completion_tokens: _Optional[int] = ..., time_to_first_token_seconds: _Optional[float] = ...) -> None: ...
