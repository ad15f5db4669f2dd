from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FitVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIT_VERDICT_UNSPECIFIED: _ClassVar[FitVerdict]
    FIT_VERDICT_COMFORTABLE: _ClassVar[FitVerdict]
    FIT_VERDICT_TIGHT: _ClassVar[FitVerdict]
    FIT_VERDICT_IMPOSSIBLE: _ClassVar[FitVerdict]
FIT_VERDICT_UNSPECIFIED: FitVerdict
FIT_VERDICT_COMFORTABLE: FitVerdict
FIT_VERDICT_TIGHT: FitVerdict
FIT_VERDICT_IMPOSSIBLE: FitVerdict

class ResourceEstimate(_message.Message):
    __slots__ = ("memory", "memory_total_bytes", "memory_upper_bytes", "verdict", "duration_seconds", "cost", "moment", "memory_free_bytes", "hardware", "duration_low_seconds", "duration_high_seconds", "tokens_per_second", "speed_basis", "num_observations", "num_tokens", "cost_low", "cost_high", "price_per_hour", "currency", "method", "num_parameters", "num_trained_parameters", "disk", "changes", "warnings", "world_size", "parallelism", "parallelism_reason", "host_memory_bytes", "host_memory_upper_bytes", "host_memory_free_bytes")
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UPPER_BYTES_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    MOMENT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    DURATION_LOW_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DURATION_HIGH_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    SPEED_BASIS_FIELD_NUMBER: _ClassVar[int]
    NUM_OBSERVATIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COST_LOW_FIELD_NUMBER: _ClassVar[int]
    COST_HIGH_FIELD_NUMBER: _ClassVar[int]
    PRICE_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    CURRENCY_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NUM_TRAINED_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    PARALLELISM_FIELD_NUMBER: _ClassVar[int]
    PARALLELISM_REASON_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_UPPER_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    memory: _containers.RepeatedCompositeFieldContainer[MemoryComponent]
    memory_total_bytes: int
    memory_upper_bytes: int
    verdict: FitVerdict
    duration_seconds: float
    cost: float
    moment: str
    memory_free_bytes: int
    hardware: str
    duration_low_seconds: float
    duration_high_seconds: float
    tokens_per_second: float
    speed_basis: str
    num_observations: int
    num_tokens: int
    cost_low: float
    cost_high: float
    price_per_hour: float
    currency: str
    method: _fine_tuning_job_spec_pb2.TrainingMethod
    num_parameters: int
    num_trained_parameters: int
    disk: DiskEstimate
    changes: _containers.RepeatedCompositeFieldContainer[Adjustment]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    world_size: int
    parallelism: str
    parallelism_reason: str
    host_memory_bytes: int
    host_memory_upper_bytes: int
    host_memory_free_bytes: int
    def __init__(self, memory: _Optional[_Iterable[_Union[MemoryComponent, _Mapping]]] = ..., memory_total_bytes: _Optional[int] = ..., memory_upper_bytes: _Optional[int] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., duration_seconds: _Optional[float] = ..., cost: _Optional[float] = ..., moment: _Optional[str] = ..., memory_free_bytes: _Optional[int] = ..., hardware: _Optional[str] = ..., duration_low_seconds: _Optional[float] = ..., duration_high_seconds: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., speed_basis: _Optional[str] = ..., num_observations: _Optional[int] = ..., num_tokens: _Optional[int] = ..., cost_low: _Optional[float] = ..., cost_high: _Optional[float] = ..., price_per_hour: _Optional[float] = ..., currency: _Optional[str] = ..., method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., num_parameters: _Optional[int] = ..., num_trained_parameters: _Optional[int] = ..., disk: _Optional[_Union[DiskEstimate, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Adjustment, _Mapping]]] = ..., warnings: _Optional[_Iterable[str]] = ..., world_size: _Optional[int] = ..., parallelism: _Optional[str] = ..., parallelism_reason: _Optional[str] = ..., host_memory_bytes: _Optional[int] = ..., host_memory_upper_bytes: _Optional[int] = ..., host_memory_free_bytes: _Optional[int] = ...) -> None: ...

class DiskEstimate(_message.Message):
    __slots__ = ("checkpoint_bytes", "num_checkpoints", "needed_bytes", "free_bytes", "holds_artifacts", "verdict", "download_bytes", "corpus_bytes")
    CHECKPOINT_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NEEDED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOLDS_ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    CORPUS_BYTES_FIELD_NUMBER: _ClassVar[int]
    checkpoint_bytes: int
    num_checkpoints: int
    needed_bytes: int
    free_bytes: int
    holds_artifacts: bool
    verdict: FitVerdict
    download_bytes: int
    corpus_bytes: int
    def __init__(self, checkpoint_bytes: _Optional[int] = ..., num_checkpoints: _Optional[int] = ..., needed_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., holds_artifacts: bool = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., download_bytes: _Optional[int] = ..., corpus_bytes: _Optional[int] = ...) -> None: ...

class MemoryComponent(_message.Message):
    __slots__ = ("name", "size_bytes", "description", "uncertainty")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    UNCERTAINTY_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    description: str
    uncertainty: float
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., description: _Optional[str] = ..., uncertainty: _Optional[float] = ...) -> None: ...

class ObservedSpeed(_message.Message):
    __slots__ = ("hardware", "method", "num_parameters", "flops_per_token", "tokens_per_second", "world_size")
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    FLOPS_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    hardware: str
    method: _fine_tuning_job_spec_pb2.TrainingMethod
    num_parameters: int
    flops_per_token: float
    tokens_per_second: float
    world_size: int
    def __init__(self, hardware: _Optional[str] = ..., method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., num_parameters: _Optional[int] = ..., flops_per_token: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., world_size: _Optional[int] = ...) -> None: ...

class Recommendation(_message.Message):
    __slots__ = ("method", "reason", "verdict", "adjustments", "warnings", "alternatives", "estimate", "changes", "seed", "base_model")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ADJUSTMENTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    method: _fine_tuning_job_spec_pb2.TrainingMethod
    reason: str
    verdict: FitVerdict
    adjustments: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    warnings: _containers.RepeatedScalarFieldContainer[str]
    alternatives: _containers.RepeatedScalarFieldContainer[str]
    estimate: ResourceEstimate
    changes: _containers.RepeatedCompositeFieldContainer[Adjustment]
    seed: SeedRecommendation
    base_model: str
    def __init__(self, method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., reason: _Optional[str] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., adjustments: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., alternatives: _Optional[_Iterable[str]] = ..., estimate: _Optional[_Union[ResourceEstimate, _Mapping]] = ..., changes: _Optional[_Iterable[_Union[Adjustment, _Mapping]]] = ..., seed: _Optional[_Union[SeedRecommendation, _Mapping]] = ..., base_model: _Optional[str] = ...) -> None: ...

class Adjustment(_message.Message):
    __slots__ = ("field", "before", "after")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    field: str
    before: str
    after: str
    def __init__(self, field: _Optional[str] = ..., before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class SeedRecommendation(_message.Message):
    __slots__ = ("method", "reason", "can_train", "estimated_vram_usage_gb", "suggestions", "warnings", "alternative")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CAN_TRAIN_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_VRAM_USAGE_GB_FIELD_NUMBER: _ClassVar[int]
    SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    method: _fine_tuning_job_spec_pb2.TrainingMethod
    reason: str
    can_train: bool
    estimated_vram_usage_gb: float
    suggestions: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    alternative: str
    def __init__(self, method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., reason: _Optional[str] = ..., can_train: bool = ..., estimated_vram_usage_gb: _Optional[float] = ..., suggestions: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ..., alternative: _Optional[str] = ...) -> None: ...

class DecisionMatrix(_message.Message):
    __slots__ = ("cells",)
    CELLS_FIELD_NUMBER: _ClassVar[int]
    cells: _containers.RepeatedCompositeFieldContainer[DecisionCell]
    def __init__(self, cells: _Optional[_Iterable[_Union[DecisionCell, _Mapping]]] = ...) -> None: ...

class DecisionCell(_message.Message):
    __slots__ = ("band", "memory_free_bytes", "size", "base_model", "method", "verdict", "memory_upper_bytes", "changes", "seed_method", "seed_verdict", "difference")
    BAND_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_UPPER_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    SEED_METHOD_FIELD_NUMBER: _ClassVar[int]
    SEED_VERDICT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    band: str
    memory_free_bytes: int
    size: str
    base_model: str
    method: _fine_tuning_job_spec_pb2.TrainingMethod
    verdict: FitVerdict
    memory_upper_bytes: int
    changes: _containers.RepeatedScalarFieldContainer[str]
    seed_method: _fine_tuning_job_spec_pb2.TrainingMethod
    seed_verdict: FitVerdict
    difference: str
    def __init__(self, band: _Optional[str] = ..., memory_free_bytes: _Optional[int] = ..., size: _Optional[str] = ..., base_model: _Optional[str] = ..., method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., verdict: _Optional[_Union[FitVerdict, str]] = ..., memory_upper_bytes: _Optional[int] = ..., changes: _Optional[_Iterable[str]] = ..., seed_method: _Optional[_Union[_fine_tuning_job_spec_pb2.TrainingMethod, str]] = ..., seed_verdict: _Optional[_Union[FitVerdict, str]] = ..., difference: _Optional[str] = ...) -> None: ...
