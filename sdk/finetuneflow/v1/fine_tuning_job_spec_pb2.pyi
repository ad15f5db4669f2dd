from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StartMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    START_MODE_UNSPECIFIED: _ClassVar[StartMode]
    START_MODE_CONTINUE: _ClassVar[StartMode]
    START_MODE_NEW: _ClassVar[StartMode]

class TrainingMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAINING_METHOD_UNSPECIFIED: _ClassVar[TrainingMethod]
    TRAINING_METHOD_AUTO: _ClassVar[TrainingMethod]
    TRAINING_METHOD_LORA: _ClassVar[TrainingMethod]
    TRAINING_METHOD_QLORA: _ClassVar[TrainingMethod]
    TRAINING_METHOD_FULL: _ClassVar[TrainingMethod]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_AUTO: _ClassVar[Precision]
    PRECISION_BF16: _ClassVar[Precision]
    PRECISION_FP16: _ClassVar[Precision]
    PRECISION_FP32: _ClassVar[Precision]

class Truncation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUNCATION_UNSPECIFIED: _ClassVar[Truncation]
    TRUNCATION_KEEP_START: _ClassVar[Truncation]
    TRUNCATION_KEEP_END: _ClassVar[Truncation]
    TRUNCATION_DROP: _ClassVar[Truncation]

class LossScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_SCOPE_UNSPECIFIED: _ClassVar[LossScope]
    LOSS_SCOPE_RESPONSE: _ClassVar[LossScope]
    LOSS_SCOPE_ALL: _ClassVar[LossScope]

class ExportFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXPORT_FORMAT_UNSPECIFIED: _ClassVar[ExportFormat]
    EXPORT_FORMAT_ADAPTER: _ClassVar[ExportFormat]
    EXPORT_FORMAT_MERGED: _ClassVar[ExportFormat]
    EXPORT_FORMAT_GGUF: _ClassVar[ExportFormat]
    EXPORT_FORMAT_GGUF_ADAPTER: _ClassVar[ExportFormat]
START_MODE_UNSPECIFIED: StartMode
START_MODE_CONTINUE: StartMode
START_MODE_NEW: StartMode
TRAINING_METHOD_UNSPECIFIED: TrainingMethod
TRAINING_METHOD_AUTO: TrainingMethod
TRAINING_METHOD_LORA: TrainingMethod
TRAINING_METHOD_QLORA: TrainingMethod
TRAINING_METHOD_FULL: TrainingMethod
PRECISION_UNSPECIFIED: Precision
PRECISION_AUTO: Precision
PRECISION_BF16: Precision
PRECISION_FP16: Precision
PRECISION_FP32: Precision
TRUNCATION_UNSPECIFIED: Truncation
TRUNCATION_KEEP_START: Truncation
TRUNCATION_KEEP_END: Truncation
TRUNCATION_DROP: Truncation
LOSS_SCOPE_UNSPECIFIED: LossScope
LOSS_SCOPE_RESPONSE: LossScope
LOSS_SCOPE_ALL: LossScope
EXPORT_FORMAT_UNSPECIFIED: ExportFormat
EXPORT_FORMAT_ADAPTER: ExportFormat
EXPORT_FORMAT_MERGED: ExportFormat
EXPORT_FORMAT_GGUF: ExportFormat
EXPORT_FORMAT_GGUF_ADAPTER: ExportFormat

class FineTuningJobSpec(_message.Message):
    __slots__ = ("display_name", "task", "labels", "base_model", "method", "recipe", "chat_template", "system_prompt", "training_data", "phases", "evaluation_data", "holdout_fraction", "hyperparameters", "lora", "quantization", "evaluation", "export", "integrations", "resources", "max_attempts", "seed", "priority", "secrets", "start_from", "start_mode")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SecretsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    SYSTEM_PROMPT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_DATA_FIELD_NUMBER: _ClassVar[int]
    HOLDOUT_FRACTION_FIELD_NUMBER: _ClassVar[int]
    HYPERPARAMETERS_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    INTEGRATIONS_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    MAX_ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SECRETS_FIELD_NUMBER: _ClassVar[int]
    START_FROM_FIELD_NUMBER: _ClassVar[int]
    START_MODE_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    task: str
    labels: _containers.ScalarMap[str, str]
    base_model: str
    method: TrainingMethod
    recipe: str
    chat_template: str
    system_prompt: str
    training_data: _containers.RepeatedCompositeFieldContainer[DataSource]
    phases: _containers.RepeatedCompositeFieldContainer[TrainingPhase]
    evaluation_data: _containers.RepeatedCompositeFieldContainer[DataSource]
    holdout_fraction: float
    hyperparameters: Hyperparameters
    lora: LoraSpec
    quantization: QuantizationSpec
    evaluation: EvaluationSpec
    export: ExportSpec
    integrations: _containers.RepeatedCompositeFieldContainer[IntegrationSpec]
    resources: ResourceSpec
    max_attempts: int
    seed: int
    priority: int
    secrets: _containers.ScalarMap[str, str]
    start_from: str
    start_mode: StartMode
    def __init__(self, display_name: _Optional[str] = ..., task: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., base_model: _Optional[str] = ..., method: _Optional[_Union[TrainingMethod, str]] = ..., recipe: _Optional[str] = ..., chat_template: _Optional[str] = ..., system_prompt: _Optional[str] = ..., training_data: _Optional[_Iterable[_Union[DataSource, _Mapping]]] = ..., phases: _Optional[_Iterable[_Union[TrainingPhase, _Mapping]]] = ..., evaluation_data: _Optional[_Iterable[_Union[DataSource, _Mapping]]] = ..., holdout_fraction: _Optional[float] = ..., hyperparameters: _Optional[_Union[Hyperparameters, _Mapping]] = ..., lora: _Optional[_Union[LoraSpec, _Mapping]] = ..., quantization: _Optional[_Union[QuantizationSpec, _Mapping]] = ..., evaluation: _Optional[_Union[EvaluationSpec, _Mapping]] = ..., export: _Optional[_Union[ExportSpec, _Mapping]] = ..., integrations: _Optional[_Iterable[_Union[IntegrationSpec, _Mapping]]] = ..., resources: _Optional[_Union[ResourceSpec, _Mapping]] = ..., max_attempts: _Optional[int] = ..., seed: _Optional[int] = ..., priority: _Optional[int] = ..., secrets: _Optional[_Mapping[str, str]] = ..., start_from: _Optional[str] = ..., start_mode: _Optional[_Union[StartMode, str]] = ...) -> None: ...

class DataSource(_message.Message):
    __slots__ = ("dataset", "weight", "mapping", "template", "format", "max_samples", "max_tokens")
    class MappingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DATASET_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    MAPPING_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    MAX_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    weight: float
    mapping: _containers.ScalarMap[str, str]
    template: str
    format: str
    max_samples: int
    max_tokens: int
    def __init__(self, dataset: _Optional[str] = ..., weight: _Optional[float] = ..., mapping: _Optional[_Mapping[str, str]] = ..., template: _Optional[str] = ..., format: _Optional[str] = ..., max_samples: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class TrainingPhase(_message.Message):
    __slots__ = ("display_name", "training_data", "num_epochs")
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    TRAINING_DATA_FIELD_NUMBER: _ClassVar[int]
    NUM_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    training_data: _containers.RepeatedCompositeFieldContainer[DataSource]
    num_epochs: float
    def __init__(self, display_name: _Optional[str] = ..., training_data: _Optional[_Iterable[_Union[DataSource, _Mapping]]] = ..., num_epochs: _Optional[float] = ...) -> None: ...

class Hyperparameters(_message.Message):
    __slots__ = ("num_epochs", "max_steps", "learning_rate", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "max_length", "warmup_ratio", "warmup_steps", "weight_decay", "lr_scheduler_type", "optim", "precision", "gradient_checkpointing", "max_grad_norm", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "early_stopping_patience", "early_stopping_threshold", "loss_on", "packing", "group_by_length", "truncation", "neftune_noise_alpha", "label_smoothing_factor", "attn_implementation", "min_learning_rate_ratio", "streaming", "shuffle_buffer_tokens")
    NUM_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    PER_DEVICE_TRAIN_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    PER_DEVICE_EVAL_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    MAX_LENGTH_FIELD_NUMBER: _ClassVar[int]
    WARMUP_RATIO_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    LR_SCHEDULER_TYPE_FIELD_NUMBER: _ClassVar[int]
    OPTIM_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    LOGGING_STEPS_FIELD_NUMBER: _ClassVar[int]
    EVAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    SAVE_STEPS_FIELD_NUMBER: _ClassVar[int]
    SAVE_TOTAL_LIMIT_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOPPING_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    LOSS_ON_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    GROUP_BY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRUNCATION_FIELD_NUMBER: _ClassVar[int]
    NEFTUNE_NOISE_ALPHA_FIELD_NUMBER: _ClassVar[int]
    LABEL_SMOOTHING_FACTOR_FIELD_NUMBER: _ClassVar[int]
    ATTN_IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    MIN_LEARNING_RATE_RATIO_FIELD_NUMBER: _ClassVar[int]
    STREAMING_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_BUFFER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_epochs: float
    max_steps: int
    learning_rate: float
    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    gradient_accumulation_steps: int
    max_length: int
    warmup_ratio: float
    warmup_steps: int
    weight_decay: float
    lr_scheduler_type: str
    optim: str
    precision: Precision
    gradient_checkpointing: bool
    max_grad_norm: float
    logging_steps: int
    eval_steps: int
    save_steps: int
    save_total_limit: int
    early_stopping_patience: int
    early_stopping_threshold: float
    loss_on: LossScope
    packing: bool
    group_by_length: bool
    truncation: Truncation
    neftune_noise_alpha: float
    label_smoothing_factor: float
    attn_implementation: str
    min_learning_rate_ratio: float
    streaming: bool
    shuffle_buffer_tokens: int
    def __init__(self, num_epochs: _Optional[float] = ..., max_steps: _Optional[int] = ..., learning_rate: _Optional[float] = ..., per_device_train_batch_size: _Optional[int] = ..., per_device_eval_batch_size: _Optional[int] = ..., gradient_accumulation_steps: _Optional[int] = ..., max_length: _Optional[int] = ..., warmup_ratio: _Optional[float] = ..., warmup_steps: _Optional[int] = ..., weight_decay: _Optional[float] = ..., lr_scheduler_type: _Optional[str] = ..., optim: _Optional[str] = ..., precision: _Optional[_Union[Precision, str]] = ..., gradient_checkpointing: bool = ..., max_grad_norm: _Optional[float] = ..., logging_steps: _Optional[int] = ..., eval_steps: _Optional[int] = ..., save_steps: _Optional[int] = ..., save_total_limit: _Optional[int] = ..., early_stopping_patience: _Optional[int] = ..., early_stopping_threshold: _Optional[float] = ..., loss_on: _Optional[_Union[LossScope, str]] = ..., packing: bool = ..., group_by_length: bool = ..., truncation: _Optional[_Union[Truncation, str]] = ..., neftune_noise_alpha: _Optional[float] = ..., label_smoothing_factor: _Optional[float] = ..., attn_implementation: _Optional[str] = ..., min_learning_rate_ratio: _Optional[float] = ..., streaming: bool = ..., shuffle_buffer_tokens: _Optional[int] = ...) -> None: ...

class LoraSpec(_message.Message):
    __slots__ = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "use_rslora", "use_dora", "init_lora_weights", "target_modules_pattern", "layers_to_transform", "modules_to_save", "trainable_tokens")
    R_FIELD_NUMBER: _ClassVar[int]
    LORA_ALPHA_FIELD_NUMBER: _ClassVar[int]
    LORA_DROPOUT_FIELD_NUMBER: _ClassVar[int]
    BIAS_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    USE_RSLORA_FIELD_NUMBER: _ClassVar[int]
    USE_DORA_FIELD_NUMBER: _ClassVar[int]
    INIT_LORA_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_PATTERN_FIELD_NUMBER: _ClassVar[int]
    LAYERS_TO_TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    MODULES_TO_SAVE_FIELD_NUMBER: _ClassVar[int]
    TRAINABLE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    r: int
    lora_alpha: float
    lora_dropout: float
    bias: str
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    use_rslora: bool
    use_dora: bool
    init_lora_weights: str
    target_modules_pattern: str
    layers_to_transform: _containers.RepeatedScalarFieldContainer[int]
    modules_to_save: _containers.RepeatedScalarFieldContainer[str]
    trainable_tokens: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, r: _Optional[int] = ..., lora_alpha: _Optional[float] = ..., lora_dropout: _Optional[float] = ..., bias: _Optional[str] = ..., target_modules: _Optional[_Iterable[str]] = ..., use_rslora: bool = ..., use_dora: bool = ..., init_lora_weights: _Optional[str] = ..., target_modules_pattern: _Optional[str] = ..., layers_to_transform: _Optional[_Iterable[int]] = ..., modules_to_save: _Optional[_Iterable[str]] = ..., trainable_tokens: _Optional[_Iterable[str]] = ...) -> None: ...

class QuantizationSpec(_message.Message):
    __slots__ = ("bits", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_compute_dtype")
    BITS_FIELD_NUMBER: _ClassVar[int]
    BNB_4BIT_QUANT_TYPE_FIELD_NUMBER: _ClassVar[int]
    BNB_4BIT_USE_DOUBLE_QUANT_FIELD_NUMBER: _ClassVar[int]
    BNB_4BIT_COMPUTE_DTYPE_FIELD_NUMBER: _ClassVar[int]
    bits: int
    bnb_4bit_quant_type: str
    bnb_4bit_use_double_quant: bool
    bnb_4bit_compute_dtype: Precision
    def __init__(self, bits: _Optional[int] = ..., bnb_4bit_quant_type: _Optional[str] = ..., bnb_4bit_use_double_quant: bool = ..., bnb_4bit_compute_dtype: _Optional[_Union[Precision, str]] = ...) -> None: ...

class EvaluationSpec(_message.Message):
    __slots__ = ("enabled", "num_samples", "prompts", "max_new_tokens", "prompt_steps", "prompt_epochs", "max_rows", "metrics", "json_schema", "graders", "gate", "questions", "regression", "harness_tasks", "harness_limit")
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    NUM_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PROMPTS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    JSON_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    GRADERS_FIELD_NUMBER: _ClassVar[int]
    GATE_FIELD_NUMBER: _ClassVar[int]
    QUESTIONS_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    HARNESS_TASKS_FIELD_NUMBER: _ClassVar[int]
    HARNESS_LIMIT_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    num_samples: int
    prompts: _containers.RepeatedScalarFieldContainer[str]
    max_new_tokens: int
    prompt_steps: int
    prompt_epochs: float
    max_rows: int
    metrics: _containers.RepeatedScalarFieldContainer[str]
    json_schema: _struct_pb2.Struct
    graders: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    gate: _containers.RepeatedCompositeFieldContainer[GateCondition]
    questions: str
    regression: str
    harness_tasks: _containers.RepeatedScalarFieldContainer[str]
    harness_limit: int
    def __init__(self, enabled: bool = ..., num_samples: _Optional[int] = ..., prompts: _Optional[_Iterable[str]] = ..., max_new_tokens: _Optional[int] = ..., prompt_steps: _Optional[int] = ..., prompt_epochs: _Optional[float] = ..., max_rows: _Optional[int] = ..., metrics: _Optional[_Iterable[str]] = ..., json_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., graders: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., gate: _Optional[_Iterable[_Union[GateCondition, _Mapping]]] = ..., questions: _Optional[str] = ..., regression: _Optional[str] = ..., harness_tasks: _Optional[_Iterable[str]] = ..., harness_limit: _Optional[int] = ...) -> None: ...

class GateCondition(_message.Message):
    __slots__ = ("metric", "min_gain", "min_value", "max_value", "confidence")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    MIN_GAIN_FIELD_NUMBER: _ClassVar[int]
    MIN_VALUE_FIELD_NUMBER: _ClassVar[int]
    MAX_VALUE_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    metric: str
    min_gain: float
    min_value: float
    max_value: float
    confidence: float
    def __init__(self, metric: _Optional[str] = ..., min_gain: _Optional[float] = ..., min_value: _Optional[float] = ..., max_value: _Optional[float] = ..., confidence: _Optional[float] = ...) -> None: ...

class ExportSpec(_message.Message):
    __slots__ = ("formats", "dtype", "merge_base", "gguf_types", "hub")
    FORMATS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    MERGE_BASE_FIELD_NUMBER: _ClassVar[int]
    GGUF_TYPES_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    formats: _containers.RepeatedScalarFieldContainer[ExportFormat]
    dtype: str
    merge_base: str
    gguf_types: _containers.RepeatedScalarFieldContainer[str]
    hub: HubPush
    def __init__(self, formats: _Optional[_Iterable[_Union[ExportFormat, str]]] = ..., dtype: _Optional[str] = ..., merge_base: _Optional[str] = ..., gguf_types: _Optional[_Iterable[str]] = ..., hub: _Optional[_Union[HubPush, _Mapping]] = ...) -> None: ...

class HubPush(_message.Message):
    __slots__ = ("repo_id", "private", "revision", "commit_message")
    REPO_ID_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COMMIT_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    repo_id: str
    private: bool
    revision: str
    commit_message: str
    def __init__(self, repo_id: _Optional[str] = ..., private: bool = ..., revision: _Optional[str] = ..., commit_message: _Optional[str] = ...) -> None: ...

class IntegrationSpec(_message.Message):
    __slots__ = ("webhook", "tensorboard", "mlflow", "wandb")
    WEBHOOK_FIELD_NUMBER: _ClassVar[int]
    TENSORBOARD_FIELD_NUMBER: _ClassVar[int]
    MLFLOW_FIELD_NUMBER: _ClassVar[int]
    WANDB_FIELD_NUMBER: _ClassVar[int]
    webhook: WebhookSpec
    tensorboard: TensorboardSpec
    mlflow: MlflowSpec
    wandb: WandbSpec
    def __init__(self, webhook: _Optional[_Union[WebhookSpec, _Mapping]] = ..., tensorboard: _Optional[_Union[TensorboardSpec, _Mapping]] = ..., mlflow: _Optional[_Union[MlflowSpec, _Mapping]] = ..., wandb: _Optional[_Union[WandbSpec, _Mapping]] = ...) -> None: ...

class WebhookSpec(_message.Message):
    __slots__ = ("url", "secret", "kinds")
    URL_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    url: str
    secret: str
    kinds: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, url: _Optional[str] = ..., secret: _Optional[str] = ..., kinds: _Optional[_Iterable[str]] = ...) -> None: ...

class TensorboardSpec(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MlflowSpec(_message.Message):
    __slots__ = ("tracking_uri", "experiment", "run_name", "username", "secret")
    TRACKING_URI_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    tracking_uri: str
    experiment: str
    run_name: str
    username: str
    secret: str
    def __init__(self, tracking_uri: _Optional[str] = ..., experiment: _Optional[str] = ..., run_name: _Optional[str] = ..., username: _Optional[str] = ..., secret: _Optional[str] = ...) -> None: ...

class WandbSpec(_message.Message):
    __slots__ = ("project", "run_name", "secret", "entity", "base_url", "offline")
    PROJECT_FIELD_NUMBER: _ClassVar[int]
    RUN_NAME_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    ENTITY_FIELD_NUMBER: _ClassVar[int]
    BASE_URL_FIELD_NUMBER: _ClassVar[int]
    OFFLINE_FIELD_NUMBER: _ClassVar[int]
    project: str
    run_name: str
    secret: str
    entity: str
    base_url: str
    offline: bool
    def __init__(self, project: _Optional[str] = ..., run_name: _Optional[str] = ..., secret: _Optional[str] = ..., entity: _Optional[str] = ..., base_url: _Optional[str] = ..., offline: bool = ...) -> None: ...

class ResourceSpec(_message.Message):
    __slots__ = ("pool", "gpus", "world_size", "parallelism")
    POOL_FIELD_NUMBER: _ClassVar[int]
    GPUS_FIELD_NUMBER: _ClassVar[int]
    WORLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    PARALLELISM_FIELD_NUMBER: _ClassVar[int]
    pool: str
    gpus: int
    world_size: int
    parallelism: str
    def __init__(self, pool: _Optional[str] = ..., gpus: _Optional[int] = ..., world_size: _Optional[int] = ..., parallelism: _Optional[str] = ...) -> None: ...
