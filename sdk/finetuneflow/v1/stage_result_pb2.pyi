from finetuneflow.v1 import estimate_pb2 as _estimate_pb2
from finetuneflow.v1 import fine_tuning_job_spec_pb2 as _fine_tuning_job_spec_pb2
from finetuneflow.v1 import hardware_pb2 as _hardware_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Conclusion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONCLUSION_UNSPECIFIED: _ClassVar[Conclusion]
    CONCLUSION_BETTER: _ClassVar[Conclusion]
    CONCLUSION_WORSE: _ClassVar[Conclusion]
    CONCLUSION_NO_DIFFERENCE_SHOWN: _ClassVar[Conclusion]

class GateDecision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GATE_DECISION_UNSPECIFIED: _ClassVar[GateDecision]
    GATE_DECISION_PROMOTE: _ClassVar[GateDecision]
    GATE_DECISION_REJECT: _ClassVar[GateDecision]
    GATE_DECISION_INCONCLUSIVE: _ClassVar[GateDecision]
CONCLUSION_UNSPECIFIED: Conclusion
CONCLUSION_BETTER: Conclusion
CONCLUSION_WORSE: Conclusion
CONCLUSION_NO_DIFFERENCE_SHOWN: Conclusion
GATE_DECISION_UNSPECIFIED: GateDecision
GATE_DECISION_PROMOTE: GateDecision
GATE_DECISION_REJECT: GateDecision
GATE_DECISION_INCONCLUSIVE: GateDecision

class PreflightResult(_message.Message):
    __slots__ = ("base_model", "training_data", "evaluation_data", "total_steps", "shards_path", "shards_manifest_sha256", "hardware", "warnings", "estimate", "shards_content_key", "shards_reused", "phases", "num_packed_sequences", "packing_efficiency", "hub_datasets")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_DATA_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    SHARDS_PATH_FIELD_NUMBER: _ClassVar[int]
    SHARDS_MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_CONTENT_KEY_FIELD_NUMBER: _ClassVar[int]
    SHARDS_REUSED_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    NUM_PACKED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PACKING_EFFICIENCY_FIELD_NUMBER: _ClassVar[int]
    HUB_DATASETS_FIELD_NUMBER: _ClassVar[int]
    base_model: BaseModelIdentity
    training_data: DataStatistics
    evaluation_data: DataStatistics
    total_steps: int
    shards_path: str
    shards_manifest_sha256: str
    hardware: _hardware_pb2.Hardware
    warnings: _containers.RepeatedScalarFieldContainer[str]
    estimate: _estimate_pb2.ResourceEstimate
    shards_content_key: str
    shards_reused: bool
    phases: _containers.RepeatedCompositeFieldContainer[PhaseStatistics]
    num_packed_sequences: int
    packing_efficiency: float
    hub_datasets: _containers.RepeatedCompositeFieldContainer[HubDataset]
    def __init__(self, base_model: _Optional[_Union[BaseModelIdentity, _Mapping]] = ..., training_data: _Optional[_Union[DataStatistics, _Mapping]] = ..., evaluation_data: _Optional[_Union[DataStatistics, _Mapping]] = ..., total_steps: _Optional[int] = ..., shards_path: _Optional[str] = ..., shards_manifest_sha256: _Optional[str] = ..., hardware: _Optional[_Union[_hardware_pb2.Hardware, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., estimate: _Optional[_Union[_estimate_pb2.ResourceEstimate, _Mapping]] = ..., shards_content_key: _Optional[str] = ..., shards_reused: bool = ..., phases: _Optional[_Iterable[_Union[PhaseStatistics, _Mapping]]] = ..., num_packed_sequences: _Optional[int] = ..., packing_efficiency: _Optional[float] = ..., hub_datasets: _Optional[_Iterable[_Union[HubDataset, _Mapping]]] = ...) -> None: ...

class HubDataset(_message.Message):
    __slots__ = ("asked", "pinned", "revision", "filename", "size_bytes", "sha256")
    ASKED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    asked: str
    pinned: str
    revision: str
    filename: str
    size_bytes: int
    sha256: str
    def __init__(self, asked: _Optional[str] = ..., pinned: _Optional[str] = ..., revision: _Optional[str] = ..., filename: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class PhaseStatistics(_message.Message):
    __slots__ = ("display_name", "num_epochs", "first_step", "training_data", "num_packed_sequences")
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    NUM_PACKED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    num_epochs: float
    first_step: int
    training_data: DataStatistics
    num_packed_sequences: int
    def __init__(self, display_name: _Optional[str] = ..., num_epochs: _Optional[float] = ..., first_step: _Optional[int] = ..., training_data: _Optional[_Union[DataStatistics, _Mapping]] = ..., num_packed_sequences: _Optional[int] = ...) -> None: ...

class BaseModelIdentity(_message.Message):
    __slots__ = ("id", "revision", "weights_sha256", "num_parameters", "context_length", "architecture", "tokenizer_path")
    ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_SHA256_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    TOKENIZER_PATH_FIELD_NUMBER: _ClassVar[int]
    id: str
    revision: str
    weights_sha256: str
    num_parameters: int
    context_length: int
    architecture: str
    tokenizer_path: str
    def __init__(self, id: _Optional[str] = ..., revision: _Optional[str] = ..., weights_sha256: _Optional[str] = ..., num_parameters: _Optional[int] = ..., context_length: _Optional[int] = ..., architecture: _Optional[str] = ..., tokenizer_path: _Optional[str] = ...) -> None: ...

class DataStatistics(_message.Message):
    __slots__ = ("num_examples", "num_tokens", "num_trained_tokens", "num_truncated", "num_duplicates", "max_tokens", "mean_tokens", "format", "num_dropped", "percentiles", "histogram", "roles", "scripts", "num_too_long", "num_left_out", "languages")
    class PercentilesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class HistogramEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: int
        value: int
        def __init__(self, key: _Optional[int] = ..., value: _Optional[int] = ...) -> None: ...
    class RolesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ScriptsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    NUM_DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MEAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    PERCENTILES_FIELD_NUMBER: _ClassVar[int]
    HISTOGRAM_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    SCRIPTS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOO_LONG_FIELD_NUMBER: _ClassVar[int]
    NUM_LEFT_OUT_FIELD_NUMBER: _ClassVar[int]
    LANGUAGES_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    num_tokens: int
    num_trained_tokens: int
    num_truncated: int
    num_duplicates: int
    max_tokens: int
    mean_tokens: float
    format: str
    num_dropped: int
    percentiles: _containers.ScalarMap[int, int]
    histogram: _containers.ScalarMap[int, int]
    roles: _containers.ScalarMap[str, int]
    scripts: _containers.ScalarMap[str, int]
    num_too_long: int
    num_left_out: int
    languages: _containers.RepeatedCompositeFieldContainer[LanguageCount]
    def __init__(self, num_examples: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_trained_tokens: _Optional[int] = ..., num_truncated: _Optional[int] = ..., num_duplicates: _Optional[int] = ..., max_tokens: _Optional[int] = ..., mean_tokens: _Optional[float] = ..., format: _Optional[str] = ..., num_dropped: _Optional[int] = ..., percentiles: _Optional[_Mapping[int, int]] = ..., histogram: _Optional[_Mapping[int, int]] = ..., roles: _Optional[_Mapping[str, int]] = ..., scripts: _Optional[_Mapping[str, int]] = ..., num_too_long: _Optional[int] = ..., num_left_out: _Optional[int] = ..., languages: _Optional[_Iterable[_Union[LanguageCount, _Mapping]]] = ...) -> None: ...

class LanguageCount(_message.Message):
    __slots__ = ("role", "language", "num_texts")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    NUM_TEXTS_FIELD_NUMBER: _ClassVar[int]
    role: str
    language: str
    num_texts: int
    def __init__(self, role: _Optional[str] = ..., language: _Optional[str] = ..., num_texts: _Optional[int] = ...) -> None: ...

class TrainingResult(_message.Message):
    __slots__ = ("total_steps", "train_loss", "final_train_loss", "best_eval_loss", "best_step", "final_eval_loss", "train_runtime_seconds", "train_samples_per_second", "train_tokens_per_second", "early_stopped", "num_trainable_parameters", "peak_memory_bytes", "best_checkpoint_path", "best_checkpoint_manifest_sha256", "peak_gpu_memory_bytes", "epochs")
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    FINAL_TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    BEST_STEP_FIELD_NUMBER: _ClassVar[int]
    FINAL_EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_RUNTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SAMPLES_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    TRAIN_TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPED_FIELD_NUMBER: _ClassVar[int]
    NUM_TRAINABLE_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    BEST_CHECKPOINT_PATH_FIELD_NUMBER: _ClassVar[int]
    BEST_CHECKPOINT_MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    PEAK_GPU_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    total_steps: int
    train_loss: float
    final_train_loss: float
    best_eval_loss: float
    best_step: int
    final_eval_loss: float
    train_runtime_seconds: float
    train_samples_per_second: float
    train_tokens_per_second: float
    early_stopped: bool
    num_trainable_parameters: int
    peak_memory_bytes: int
    best_checkpoint_path: str
    best_checkpoint_manifest_sha256: str
    peak_gpu_memory_bytes: int
    epochs: float
    def __init__(self, total_steps: _Optional[int] = ..., train_loss: _Optional[float] = ..., final_train_loss: _Optional[float] = ..., best_eval_loss: _Optional[float] = ..., best_step: _Optional[int] = ..., final_eval_loss: _Optional[float] = ..., train_runtime_seconds: _Optional[float] = ..., train_samples_per_second: _Optional[float] = ..., train_tokens_per_second: _Optional[float] = ..., early_stopped: bool = ..., num_trainable_parameters: _Optional[int] = ..., peak_memory_bytes: _Optional[int] = ..., best_checkpoint_path: _Optional[str] = ..., best_checkpoint_manifest_sha256: _Optional[str] = ..., peak_gpu_memory_bytes: _Optional[int] = ..., epochs: _Optional[float] = ...) -> None: ...

class EvaluationResult(_message.Message):
    __slots__ = ("base_loss", "tuned_loss", "base_perplexity", "tuned_perplexity", "num_examples", "num_trained_tokens", "samples", "metrics", "gate", "num_answered", "rows_path", "rows_sha256", "rows_size_bytes", "precision", "weights", "quantized_loss", "classification", "num_reused", "findings", "questions", "regression", "rows_hash", "single_model", "shown_regression", "harness")
    BASE_LOSS_FIELD_NUMBER: _ClassVar[int]
    TUNED_LOSS_FIELD_NUMBER: _ClassVar[int]
    BASE_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    TUNED_PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_TRAINED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    NUM_ANSWERED_FIELD_NUMBER: _ClassVar[int]
    ROWS_PATH_FIELD_NUMBER: _ClassVar[int]
    ROWS_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROWS_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZED_LOSS_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    NUM_REUSED_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    ROWS_HASH_FIELD_NUMBER: _ClassVar[int]
    SINGLE_MODEL_FIELD_NUMBER: _ClassVar[int]
    SHOWN_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    HARNESS_FIELD_NUMBER: _ClassVar[int]
    base_loss: float
    tuned_loss: float
    base_perplexity: float
    tuned_perplexity: float
    num_examples: int
    num_trained_tokens: int
    samples: _containers.RepeatedCompositeFieldContainer[InferenceSample]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricComparison]
    gate: GateResult
    num_answered: int
    rows_path: str
    rows_sha256: str
    rows_size_bytes: int
    precision: str
    weights: str
    quantized_loss: float
    classification: Classification
    num_reused: int
    findings: _containers.RepeatedScalarFieldContainer[str]
    questions: QuestionsResult
    regression: Regression
    rows_hash: str
    single_model: bool
    shown_regression: str
    harness: HarnessResult
    def __init__(self, base_loss: _Optional[float] = ..., tuned_loss: _Optional[float] = ..., base_perplexity: _Optional[float] = ..., tuned_perplexity: _Optional[float] = ..., num_examples: _Optional[int] = ..., num_trained_tokens: _Optional[int] = ..., samples: _Optional[_Iterable[_Union[InferenceSample, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[MetricComparison, _Mapping]]] = ..., gate: _Optional[_Union[GateResult, _Mapping]] = ..., num_answered: _Optional[int] = ..., rows_path: _Optional[str] = ..., rows_sha256: _Optional[str] = ..., rows_size_bytes: _Optional[int] = ..., precision: _Optional[str] = ..., weights: _Optional[str] = ..., quantized_loss: _Optional[float] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., num_reused: _Optional[int] = ..., findings: _Optional[_Iterable[str]] = ..., questions: _Optional[_Union[QuestionsResult, _Mapping]] = ..., regression: _Optional[_Union[Regression, _Mapping]] = ..., rows_hash: _Optional[str] = ..., single_model: bool = ..., shown_regression: _Optional[str] = ..., harness: _Optional[_Union[HarnessResult, _Mapping]] = ...) -> None: ...

class HarnessResult(_message.Message):
    __slots__ = ("version", "limit", "chat_template", "metrics")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    version: str
    limit: int
    chat_template: bool
    metrics: _containers.RepeatedCompositeFieldContainer[HarnessMetric]
    def __init__(self, version: _Optional[str] = ..., limit: _Optional[int] = ..., chat_template: bool = ..., metrics: _Optional[_Iterable[_Union[HarnessMetric, _Mapping]]] = ...) -> None: ...

class HarnessMetric(_message.Message):
    __slots__ = ("task", "task_version", "metric", "filter", "base", "base_stderr", "tuned", "tuned_stderr", "higher_is_better", "num_rows", "num_fewshot")
    TASK_FIELD_NUMBER: _ClassVar[int]
    TASK_VERSION_FIELD_NUMBER: _ClassVar[int]
    METRIC_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    BASE_STDERR_FIELD_NUMBER: _ClassVar[int]
    TUNED_FIELD_NUMBER: _ClassVar[int]
    TUNED_STDERR_FIELD_NUMBER: _ClassVar[int]
    HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_FEWSHOT_FIELD_NUMBER: _ClassVar[int]
    task: str
    task_version: str
    metric: str
    filter: str
    base: float
    base_stderr: float
    tuned: float
    tuned_stderr: float
    higher_is_better: bool
    num_rows: int
    num_fewshot: int
    def __init__(self, task: _Optional[str] = ..., task_version: _Optional[str] = ..., metric: _Optional[str] = ..., filter: _Optional[str] = ..., base: _Optional[float] = ..., base_stderr: _Optional[float] = ..., tuned: _Optional[float] = ..., tuned_stderr: _Optional[float] = ..., higher_is_better: bool = ..., num_rows: _Optional[int] = ..., num_fewshot: _Optional[int] = ...) -> None: ...

class MetricComparison(_message.Message):
    __slots__ = ("name", "higher_is_better", "base", "tuned", "gain", "gain_low", "gain_high", "confidence", "num_rows", "num_improved", "num_worsened", "p_value", "detectable_gain", "conclusion", "signature")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HIGHER_IS_BETTER_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TUNED_FIELD_NUMBER: _ClassVar[int]
    GAIN_FIELD_NUMBER: _ClassVar[int]
    GAIN_LOW_FIELD_NUMBER: _ClassVar[int]
    GAIN_HIGH_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_IMPROVED_FIELD_NUMBER: _ClassVar[int]
    NUM_WORSENED_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    DETECTABLE_GAIN_FIELD_NUMBER: _ClassVar[int]
    CONCLUSION_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    name: str
    higher_is_better: bool
    base: float
    tuned: float
    gain: float
    gain_low: float
    gain_high: float
    confidence: float
    num_rows: int
    num_improved: int
    num_worsened: int
    p_value: float
    detectable_gain: float
    conclusion: Conclusion
    signature: str
    def __init__(self, name: _Optional[str] = ..., higher_is_better: bool = ..., base: _Optional[float] = ..., tuned: _Optional[float] = ..., gain: _Optional[float] = ..., gain_low: _Optional[float] = ..., gain_high: _Optional[float] = ..., confidence: _Optional[float] = ..., num_rows: _Optional[int] = ..., num_improved: _Optional[int] = ..., num_worsened: _Optional[int] = ..., p_value: _Optional[float] = ..., detectable_gain: _Optional[float] = ..., conclusion: _Optional[_Union[Conclusion, str]] = ..., signature: _Optional[str] = ...) -> None: ...

class GateResult(_message.Message):
    __slots__ = ("decision", "conditions")
    DECISION_FIELD_NUMBER: _ClassVar[int]
    CONDITIONS_FIELD_NUMBER: _ClassVar[int]
    decision: GateDecision
    conditions: _containers.RepeatedCompositeFieldContainer[ConditionResult]
    def __init__(self, decision: _Optional[_Union[GateDecision, str]] = ..., conditions: _Optional[_Iterable[_Union[ConditionResult, _Mapping]]] = ...) -> None: ...

class ConditionResult(_message.Message):
    __slots__ = ("sentence", "outcome")
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    sentence: str
    outcome: GateDecision
    def __init__(self, sentence: _Optional[str] = ..., outcome: _Optional[_Union[GateDecision, str]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("labels", "base_confusion", "tuned_confusion", "base_macro_f1", "tuned_macro_f1")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BASE_CONFUSION_FIELD_NUMBER: _ClassVar[int]
    TUNED_CONFUSION_FIELD_NUMBER: _ClassVar[int]
    BASE_MACRO_F1_FIELD_NUMBER: _ClassVar[int]
    TUNED_MACRO_F1_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    base_confusion: _containers.RepeatedScalarFieldContainer[int]
    tuned_confusion: _containers.RepeatedScalarFieldContainer[int]
    base_macro_f1: float
    tuned_macro_f1: float
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., base_confusion: _Optional[_Iterable[int]] = ..., tuned_confusion: _Optional[_Iterable[int]] = ..., base_macro_f1: _Optional[float] = ..., tuned_macro_f1: _Optional[float] = ...) -> None: ...

class QuestionsResult(_message.Message):
    __slots__ = ("num_questions", "num_passed", "num_passed_by_base", "num_must_pass", "failed_must_pass")
    NUM_QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_PASSED_FIELD_NUMBER: _ClassVar[int]
    NUM_PASSED_BY_BASE_FIELD_NUMBER: _ClassVar[int]
    NUM_MUST_PASS_FIELD_NUMBER: _ClassVar[int]
    FAILED_MUST_PASS_FIELD_NUMBER: _ClassVar[int]
    num_questions: int
    num_passed: int
    num_passed_by_base: int
    num_must_pass: int
    failed_must_pass: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, num_questions: _Optional[int] = ..., num_passed: _Optional[int] = ..., num_passed_by_base: _Optional[int] = ..., num_must_pass: _Optional[int] = ..., failed_must_pass: _Optional[_Iterable[str]] = ...) -> None: ...

class Regression(_message.Message):
    __slots__ = ("name", "base_loss", "tuned_loss", "num_rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_LOSS_FIELD_NUMBER: _ClassVar[int]
    TUNED_LOSS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    base_loss: float
    tuned_loss: float
    num_rows: int
    def __init__(self, name: _Optional[str] = ..., base_loss: _Optional[float] = ..., tuned_loss: _Optional[float] = ..., num_rows: _Optional[int] = ...) -> None: ...

class InferenceSample(_message.Message):
    __slots__ = ("instruction", "input", "expected_output", "model_output", "output_length", "base_output", "step")
    INSTRUCTION_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    MODEL_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    BASE_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    instruction: str
    input: str
    expected_output: str
    model_output: str
    output_length: int
    base_output: str
    step: int
    def __init__(self, instruction: _Optional[str] = ..., input: _Optional[str] = ..., expected_output: _Optional[str] = ..., model_output: _Optional[str] = ..., output_length: _Optional[int] = ..., base_output: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class ExportResult(_message.Message):
    __slots__ = ("package_path", "package_sha256", "package_size_bytes", "forms", "servable_by", "signing_key_fingerprint", "hub")
    PACKAGE_PATH_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_SHA256_FIELD_NUMBER: _ClassVar[int]
    PACKAGE_SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FORMS_FIELD_NUMBER: _ClassVar[int]
    SERVABLE_BY_FIELD_NUMBER: _ClassVar[int]
    SIGNING_KEY_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    package_path: str
    package_sha256: str
    package_size_bytes: int
    forms: _containers.RepeatedCompositeFieldContainer[ExportedForm]
    servable_by: _containers.RepeatedCompositeFieldContainer[ServableBy]
    signing_key_fingerprint: str
    hub: HubCommit
    def __init__(self, package_path: _Optional[str] = ..., package_sha256: _Optional[str] = ..., package_size_bytes: _Optional[int] = ..., forms: _Optional[_Iterable[_Union[ExportedForm, _Mapping]]] = ..., servable_by: _Optional[_Iterable[_Union[ServableBy, _Mapping]]] = ..., signing_key_fingerprint: _Optional[str] = ..., hub: _Optional[_Union[HubCommit, _Mapping]] = ...) -> None: ...

class HubCommit(_message.Message):
    __slots__ = ("repo_id", "revision", "commit_url", "commit_oid")
    REPO_ID_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_URL_FIELD_NUMBER: _ClassVar[int]
    COMMIT_OID_FIELD_NUMBER: _ClassVar[int]
    repo_id: str
    revision: str
    commit_url: str
    commit_oid: str
    def __init__(self, repo_id: _Optional[str] = ..., revision: _Optional[str] = ..., commit_url: _Optional[str] = ..., commit_oid: _Optional[str] = ...) -> None: ...

class ServableBy(_message.Message):
    __slots__ = ("reader", "format", "refusal", "command")
    READER_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    COMMAND_FIELD_NUMBER: _ClassVar[int]
    reader: str
    format: _fine_tuning_job_spec_pb2.ExportFormat
    refusal: str
    command: str
    def __init__(self, reader: _Optional[str] = ..., format: _Optional[_Union[_fine_tuning_job_spec_pb2.ExportFormat, str]] = ..., refusal: _Optional[str] = ..., command: _Optional[str] = ...) -> None: ...

class ExportedForm(_message.Message):
    __slots__ = ("format", "path", "size_bytes", "dtype", "merge_base", "comparison", "num_rendered_rows", "gguf", "not_run")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MERGE_BASE_FIELD_NUMBER: _ClassVar[int]
    COMPARISON_FIELD_NUMBER: _ClassVar[int]
    NUM_RENDERED_ROWS_FIELD_NUMBER: _ClassVar[int]
    GGUF_FIELD_NUMBER: _ClassVar[int]
    NOT_RUN_FIELD_NUMBER: _ClassVar[int]
    format: _fine_tuning_job_spec_pb2.ExportFormat
    path: str
    size_bytes: int
    dtype: str
    merge_base: str
    comparison: ExportComparison
    num_rendered_rows: int
    gguf: GgufFile
    not_run: str
    def __init__(self, format: _Optional[_Union[_fine_tuning_job_spec_pb2.ExportFormat, str]] = ..., path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., dtype: _Optional[str] = ..., merge_base: _Optional[str] = ..., comparison: _Optional[_Union[ExportComparison, _Mapping]] = ..., num_rendered_rows: _Optional[int] = ..., gguf: _Optional[_Union[GgufFile, _Mapping]] = ..., not_run: _Optional[str] = ...) -> None: ...

class GgufFile(_message.Message):
    __slots__ = ("file", "type", "tensor_types", "modelfile", "modelfile_gaps")
    class TensorTypesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    FILE_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    TENSOR_TYPES_FIELD_NUMBER: _ClassVar[int]
    MODELFILE_FIELD_NUMBER: _ClassVar[int]
    MODELFILE_GAPS_FIELD_NUMBER: _ClassVar[int]
    file: str
    type: str
    tensor_types: _containers.ScalarMap[str, int]
    modelfile: str
    modelfile_gaps: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, file: _Optional[str] = ..., type: _Optional[str] = ..., tensor_types: _Optional[_Mapping[str, int]] = ..., modelfile: _Optional[str] = ..., modelfile_gaps: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportComparison(_message.Message):
    __slots__ = ("rows", "num_rows", "num_positions", "mean_kl", "p99_kl", "same_next_token", "max_difference", "checkpoint_dtype", "max_mean_kl", "max_max_difference")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    NUM_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    MEAN_KL_FIELD_NUMBER: _ClassVar[int]
    P99_KL_FIELD_NUMBER: _ClassVar[int]
    SAME_NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MAX_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_DTYPE_FIELD_NUMBER: _ClassVar[int]
    MAX_MEAN_KL_FIELD_NUMBER: _ClassVar[int]
    MAX_MAX_DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    rows: str
    num_rows: int
    num_positions: int
    mean_kl: float
    p99_kl: float
    same_next_token: float
    max_difference: float
    checkpoint_dtype: str
    max_mean_kl: float
    max_max_difference: float
    def __init__(self, rows: _Optional[str] = ..., num_rows: _Optional[int] = ..., num_positions: _Optional[int] = ..., mean_kl: _Optional[float] = ..., p99_kl: _Optional[float] = ..., same_next_token: _Optional[float] = ..., max_difference: _Optional[float] = ..., checkpoint_dtype: _Optional[str] = ..., max_mean_kl: _Optional[float] = ..., max_max_difference: _Optional[float] = ...) -> None: ...
