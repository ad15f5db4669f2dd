from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Hardware(_message.Message):
    __slots__ = ("node_id", "cpu_model", "cpu_cores", "cpu_features", "memory_total_bytes", "memory_available_bytes", "disk_free_bytes", "gpus", "driver_version", "cuda_version", "has_nvidia_smi", "cuda_available", "packages", "platform", "python_version", "draining", "harness_tasks", "gguf_types", "memory_own_bytes")
    class PackagesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    CPU_MODEL_FIELD_NUMBER: _ClassVar[int]
    CPU_CORES_FIELD_NUMBER: _ClassVar[int]
    CPU_FEATURES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    DRIVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    CUDA_VERSION_FIELD_NUMBER: _ClassVar[int]
    HAS_NVIDIA_SMI_FIELD_NUMBER: _ClassVar[int]
    CUDA_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    PYTHON_VERSION_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    HARNESS_TASKS_FIELD_NUMBER: _ClassVar[int]
    GGUF_TYPES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    cpu_model: str
    cpu_cores: int
    cpu_features: _containers.RepeatedScalarFieldContainer[str]
    memory_total_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    driver_version: str
    cuda_version: str
    has_nvidia_smi: bool
    cuda_available: bool
    packages: _containers.ScalarMap[str, str]
    platform: str
    python_version: str
    draining: bool
    harness_tasks: _containers.RepeatedScalarFieldContainer[str]
    gguf_types: _containers.RepeatedScalarFieldContainer[str]
    memory_own_bytes: int
    def __init__(self, node_id: _Optional[str] = ..., cpu_model: _Optional[str] = ..., cpu_cores: _Optional[int] = ..., cpu_features: _Optional[_Iterable[str]] = ..., memory_total_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., driver_version: _Optional[str] = ..., cuda_version: _Optional[str] = ..., has_nvidia_smi: bool = ..., cuda_available: bool = ..., packages: _Optional[_Mapping[str, str]] = ..., platform: _Optional[str] = ..., python_version: _Optional[str] = ..., draining: bool = ..., harness_tasks: _Optional[_Iterable[str]] = ..., gguf_types: _Optional[_Iterable[str]] = ..., memory_own_bytes: _Optional[int] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("index", "name", "memory_total_bytes", "memory_free_bytes", "compute_capability", "bf16", "temperature_celsius", "utilization", "memory_own_bytes")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    BF16_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    UTILIZATION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    index: int
    name: str
    memory_total_bytes: int
    memory_free_bytes: int
    compute_capability: str
    bf16: bool
    temperature_celsius: float
    utilization: float
    memory_own_bytes: int
    def __init__(self, index: _Optional[int] = ..., name: _Optional[str] = ..., memory_total_bytes: _Optional[int] = ..., memory_free_bytes: _Optional[int] = ..., compute_capability: _Optional[str] = ..., bf16: bool = ..., temperature_celsius: _Optional[float] = ..., utilization: _Optional[float] = ..., memory_own_bytes: _Optional[int] = ...) -> None: ...
