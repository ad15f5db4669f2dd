from finetuneflow.v1 import access_pb2 as _access_pb2
from finetuneflow.v1 import dataset_pb2 as _dataset_pb2
from finetuneflow.v1 import estimate_pb2 as _estimate_pb2
from finetuneflow.v1 import fine_tuning_job_pb2 as _fine_tuning_job_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import hardware_pb2 as _hardware_pb2
from finetuneflow.v1 import preflight_pb2 as _preflight_pb2
from finetuneflow.v1 import stage_result_pb2 as _stage_result_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetHardwareRequest(_message.Message):
    __slots__ = ("node_id",)
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    node_id: str
    def __init__(self, node_id: _Optional[str] = ...) -> None: ...

class GetHardwareResponse(_message.Message):
    __slots__ = ("hardware",)
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    hardware: _containers.RepeatedCompositeFieldContainer[_hardware_pb2.Hardware]
    def __init__(self, hardware: _Optional[_Iterable[_Union[_hardware_pb2.Hardware, _Mapping]]] = ...) -> None: ...

class RecommendMethodRequest(_message.Message):
    __slots__ = ("base_model", "node_id", "spec", "memory_bytes", "gpu", "longest_row", "matrix", "hardware", "observed")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    LONGEST_ROW_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    node_id: str
    spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    memory_bytes: int
    gpu: str
    longest_row: int
    matrix: bool
    hardware: _hardware_pb2.Hardware
    observed: _containers.RepeatedCompositeFieldContainer[_estimate_pb2.ObservedSpeed]
    def __init__(self, base_model: _Optional[str] = ..., node_id: _Optional[str] = ..., spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., memory_bytes: _Optional[int] = ..., gpu: _Optional[str] = ..., longest_row: _Optional[int] = ..., matrix: bool = ..., hardware: _Optional[_Union[_hardware_pb2.Hardware, _Mapping]] = ..., observed: _Optional[_Iterable[_Union[_estimate_pb2.ObservedSpeed, _Mapping]]] = ...) -> None: ...

class RecommendMethodResponse(_message.Message):
    __slots__ = ("recommendation", "matrix")
    RECOMMENDATION_FIELD_NUMBER: _ClassVar[int]
    MATRIX_FIELD_NUMBER: _ClassVar[int]
    recommendation: _estimate_pb2.Recommendation
    matrix: _estimate_pb2.DecisionMatrix
    def __init__(self, recommendation: _Optional[_Union[_estimate_pb2.Recommendation, _Mapping]] = ..., matrix: _Optional[_Union[_estimate_pb2.DecisionMatrix, _Mapping]] = ...) -> None: ...

class EstimateResourcesRequest(_message.Message):
    __slots__ = ("spec", "node_id", "memory_bytes", "gpu", "longest_row", "num_examples", "mean_tokens", "held_out_tokens", "hardware", "observed")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    GPU_FIELD_NUMBER: _ClassVar[int]
    LONGEST_ROW_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    MEAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    node_id: str
    memory_bytes: int
    gpu: str
    longest_row: int
    num_examples: int
    mean_tokens: float
    held_out_tokens: int
    hardware: _hardware_pb2.Hardware
    observed: _containers.RepeatedCompositeFieldContainer[_estimate_pb2.ObservedSpeed]
    def __init__(self, spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., node_id: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., gpu: _Optional[str] = ..., longest_row: _Optional[int] = ..., num_examples: _Optional[int] = ..., mean_tokens: _Optional[float] = ..., held_out_tokens: _Optional[int] = ..., hardware: _Optional[_Union[_hardware_pb2.Hardware, _Mapping]] = ..., observed: _Optional[_Iterable[_Union[_estimate_pb2.ObservedSpeed, _Mapping]]] = ...) -> None: ...

class EstimateResourcesResponse(_message.Message):
    __slots__ = ("estimate",)
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    estimate: _estimate_pb2.ResourceEstimate
    def __init__(self, estimate: _Optional[_Union[_estimate_pb2.ResourceEstimate, _Mapping]] = ...) -> None: ...

class PreflightFineTuningJobRequest(_message.Message):
    __slots__ = ("spec", "node_id", "hardware", "observed", "datasets", "tenant", "trained_data")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    TRAINED_DATA_FIELD_NUMBER: _ClassVar[int]
    spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    node_id: str
    hardware: _hardware_pb2.Hardware
    observed: _containers.RepeatedCompositeFieldContainer[_estimate_pb2.ObservedSpeed]
    datasets: _containers.RepeatedCompositeFieldContainer[_dataset_pb2.Dataset]
    tenant: str
    trained_data: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.TrainedData]
    def __init__(self, spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., node_id: _Optional[str] = ..., hardware: _Optional[_Union[_hardware_pb2.Hardware, _Mapping]] = ..., observed: _Optional[_Iterable[_Union[_estimate_pb2.ObservedSpeed, _Mapping]]] = ..., datasets: _Optional[_Iterable[_Union[_dataset_pb2.Dataset, _Mapping]]] = ..., tenant: _Optional[str] = ..., trained_data: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.TrainedData, _Mapping]]] = ...) -> None: ...

class PreflightFineTuningJobResponse(_message.Message):
    __slots__ = ("resolved_spec", "result", "estimate", "resolutions", "report")
    RESOLVED_SPEC_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    RESOLUTIONS_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    resolved_spec: _fine_tuning_job_spec_pb2.FineTuningJobSpec
    result: _stage_result_pb2.PreflightResult
    estimate: _estimate_pb2.ResourceEstimate
    resolutions: _containers.RepeatedCompositeFieldContainer[_fine_tuning_job_pb2.Resolution]
    report: _preflight_pb2.PreflightReport
    def __init__(self, resolved_spec: _Optional[_Union[_fine_tuning_job_spec_pb2.FineTuningJobSpec, _Mapping]] = ..., result: _Optional[_Union[_stage_result_pb2.PreflightResult, _Mapping]] = ..., estimate: _Optional[_Union[_estimate_pb2.ResourceEstimate, _Mapping]] = ..., resolutions: _Optional[_Iterable[_Union[_fine_tuning_job_pb2.Resolution, _Mapping]]] = ..., report: _Optional[_Union[_preflight_pb2.PreflightReport, _Mapping]] = ...) -> None: ...
