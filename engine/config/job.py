"""Defines every field of a job with its range and default; no other module defines them.

The models mirror `FineTuningJobSpec` field for field and name for name. An automatic value is `"auto"`, or None for
types other than text; preflight replaces it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError, field_validator

from engine.config.conflicts import CONVERTED_TYPES as CONVERTED_TYPES
from engine.config.conflicts import (
    DEEPSPEED,
    adapter_conflicts,
    exclusive_fields,
    export_conflicts,
    mappings_with_template,
    paths_with_nul,
    push_conflicts,
    resource_conflicts,
    schedule_conflicts,
    streaming_conflicts,
)
from engine.config.evaluation import Evaluation
from engine.config.hub_push import HubPush
from engine.config.hub_reference import HubReference, is_hub_reference
from engine.config.integrations import MAX_INTEGRATIONS, Integration
from engine.config.recipes import Recipe, merge, recipe
from engine.config.section import NAME_PATTERN, Section, kib
from engine.config.violations import violation
from engine.errors import JobError, Violation

StartMode = Literal["continue", "new"]
Method = Literal["auto", "lora", "qlora", "full"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
LossScope = Literal["response", "all"]
Truncation = Literal["keep_start", "keep_end", "drop"]
ExportFormat = Literal["adapter", "merged", "gguf", "gguf_adapter"]
ExportDtype = Literal["", "float32", "bfloat16", "float16"]
MergeBase = Literal["trained", "original"]
GgufType = Literal[
    "f32",
    "f16",
    "bf16",
    "q8_0",
    "q2_k",
    "q3_k_s",
    "q3_k_m",
    "q3_k_l",
    "q4_0",
    "q4_k_s",
    "q4_k_m",
    "q5_0",
    "q5_k_s",
    "q5_k_m",
    "q6_k",
]
LIBLLAMA_PACKAGE: Final = "@node-llama-cpp/linux-x64@3.22.1"
"""Package of npm with that library."""
Scheduler = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
AttentionImplementation = Literal["auto", "eager", "sdpa", "flash_attention_2"]
Optimizer = Literal[
    "auto",
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "adafactor",
    "sgd",
]
RowFormat = Literal["chat", "question_answer", "instruction", "prompt_completion", "text", "tokenized"]
Column = Literal[
    "question",
    "answer",
    "instruction",
    "input",
    "output",
    "prompt",
    "completion",
    "system",
    "messages",
    "tools",
    "text",
    "input_ids",
    "labels",
    "attention_mask",
]


def _valid_reference(dataset: str) -> str:
    if is_hub_reference(dataset):
        HubReference.parse(dataset)
    return dataset


def _not_blank(template: str) -> str:
    if not template.strip():
        raise ValueError("an empty template renders no text; remove it to train on the rows as they are")
    return template


def _valid_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no regular expression: {error}") from None
    return pattern


MICRO_BATCH: Final = 4
ROWS_PER_STEP: Final = 16
"""Usual rows of a micro-batch and of an optimizer step: those of the recipe finetuneflow, for whose learning rate they
were chosen."""
SHUFFLE_BUFFER_TOKENS: Final = 2**20
MAX_SOURCES: Final = 256
"""Most sources of a job or a phase: each file of a folder is one."""
MAX_INTERVAL: Final = 1_000_000
"""Most steps between two evaluations or checkpoints."""

_Value = TypeVar("_Value")


def chosen(value: _Value | None) -> _Value:
    """Returns a value that preflight has chosen. Raises ValueError if it is still automatic."""
    if value is None:
        raise ValueError("the configuration has automatic values; preflight must resolve them first")
    return value


class DataSource(Section):
    """One dataset of a job."""

    dataset: Annotated[str, Field(min_length=1), AfterValidator(_valid_reference)]
    """The id that UploadDataset returned, or a dataset on the hub (see `engine.config.hub_reference`)."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """Number of times that an epoch repeats the rows; fractions select a part of them."""
    mapping: dict[Column, Annotated[str, Field(min_length=1)]] = Field(default={})
    """Column of the format → column of the file."""
    template: Annotated[str, AfterValidator(_not_blank), kib(64)] | None = None
    """Jinja template that renders a row to text; cannot be combined with mapping."""
    format: RowFormat | None = None
    """Format of the rows; None: detected from the columns of the first row."""
    max_samples: int | None = Field(default=None, ge=1, le=2**31 - 1)
    """Maximum number of examples that are used, drawn by the seed."""
    max_tokens: int | None = Field(default=None, ge=1, le=10**15)
    """Maximum number of trained tokens of the examples that are used, drawn by the seed; at least one example is."""


class TrainingPhase(Section):
    """One phase of a curriculum. Phases are trained in order, under one learning-rate schedule."""

    display_name: str = Field(default="", max_length=128)
    training_data: list[DataSource] = Field(min_length=1, max_length=MAX_SOURCES)
    num_epochs: float = Field(gt=0, le=1000)


class Hyperparameters(Section):
    """Optimisation, batching and schedule."""

    num_epochs: float = Field(default=3.0, gt=0, le=1000)
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps; overrides num_epochs."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    per_device_train_batch_size: int | None = Field(default=None, ge=1, le=1024)
    """None: preflight decides from the rows per step and the free memory."""
    per_device_eval_batch_size: int | None = Field(default=None, ge=1, le=1024)
    gradient_accumulation_steps: int | None = Field(default=None, ge=1, le=1024)
    """None: preflight decides from the number of rows."""
    max_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Maximum tokens of a row; `truncation` applies to longer rows."""
    warmup_ratio: float | None = Field(default=None, ge=0, lt=1)
    """None, and no warmup_steps: preflight chooses warmup_steps."""
    warmup_steps: int | None = Field(default=None, ge=0, le=10_000_000)
    """Overrides warmup_ratio."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    lr_scheduler_type: Scheduler = "cosine"
    min_learning_rate_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Part of learning_rate at which a cosine schedule ends."""
    optim: Optimizer = "auto"
    precision: Precision = "auto"
    gradient_checkpointing: bool | None = None
    """None: preflight decides from the free memory."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=1000)
    """0 disables gradient clipping."""
    logging_steps: int = Field(default=10, ge=1, le=1_000_000)
    eval_steps: int | None = Field(default=None, ge=1, le=MAX_INTERVAL)
    """None: preflight decides from the steps of the job and the cost of an evaluation."""
    save_steps: int | None = Field(default=None, ge=1, le=MAX_INTERVAL)
    """None: preflight decides from the steps of the job."""
    save_total_limit: int = Field(default=3, ge=1, le=1000)
    early_stopping_patience: int = Field(default=3, ge=0, le=1000)
    """Number of evaluations without improvement after which training stops; 0 disables early stopping."""
    early_stopping_threshold: float = Field(default=0.0, ge=0, le=100)
    loss_on: LossScope = "response"
    packing: bool | None = None
    """None: preflight decides from the hardware and the lengths of the rows."""
    group_by_length: bool | None = None
    """None: preflight decides from the lengths of the rows."""
    truncation: Truncation = "keep_start"
    """Treatment of rows longer than max_length: keep their start, keep their end, or drop them."""
    neftune_noise_alpha: float | None = Field(default=None, gt=0, le=100)
    """Scale of the noise on the embeddings (NEFTune, arXiv 2310.05914); None: no noise."""
    label_smoothing_factor: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the vocabulary, in training only."""
    attn_implementation: AttentionImplementation = "auto"
    streaming: bool = False
    """Tokenises running text while the training goes on, in place of token shards."""
    shuffle_buffer_tokens: int | None = Field(default=None, ge=1024, le=2**28)
    """Tokens of a block of sequences that are shuffled together; None: SHUFFLE_BUFFER_TOKENS if streaming."""

    @property
    def micro_batch(self) -> int:
        """Rows of a micro-batch; if automatic and not resolved yet, the usual number."""
        return self.per_device_train_batch_size or MICRO_BATCH

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step; if automatic and not resolved yet, those that make about ROWS_PER_STEP rows."""
        return self.gradient_accumulation_steps or max(1, round(ROWS_PER_STEP / self.micro_batch))

    def with_usual_batches(self) -> "Hyperparameters":
        """Returns a copy whose automatic batch sizes have the usual values, which no rows and no memory decided."""
        usual = {
            "per_device_train_batch_size": self.micro_batch,
            "per_device_eval_batch_size": self.per_device_eval_batch_size or self.micro_batch,
            "gradient_accumulation_steps": self.accumulation,
        }
        return self.model_copy(update=usual)


class Lora(Section):
    """Shape of the LoRA adapters."""

    r: int = Field(default=16, ge=1, le=1024)
    lora_alpha: float = Field(default=32.0, gt=0, le=4096)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[])
    """Empty, or `all-linear` alone: every linear layer except the head."""
    use_rslora: bool = False
    use_dora: bool = False
    """Trains magnitudes as well (DoRA, arXiv 2402.09353)."""
    init_lora_weights: str = Field(
        default="default", pattern=r"^(default|gaussian|orthogonal|olora|loftq|pissa|pissa_niter_([1-9][0-9]?|100))$"
    )
    """Initial values. PiSSA (arXiv 2404.02948), OLoRA (arXiv 2406.01775), LoftQ (arXiv 2310.08659)."""
    target_modules_pattern: (
        Annotated[str, Field(min_length=1, max_length=1024), AfterValidator(_valid_pattern)] | None
    ) = None
    """Regular expression that matches the whole paths of the layers, instead of target_modules."""
    layers_to_transform: list[Annotated[int, Field(ge=0, le=100_000)]] = Field(default=[], max_length=1000)
    """Indices of the blocks with adapters; empty: all."""
    modules_to_save: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=100)
    """Ends of the paths of modules that are trained in full and stored in the adapter."""
    trainable_tokens: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=1000)
    """Tokens whose embeddings are trained."""

    @field_validator("target_modules")
    @classmethod
    def _every_layer(cls, names: list[str]) -> list[str]:
        return [] if names == ["all-linear"] else names

    @property
    def changes_base(self) -> bool:
        """True if the initial values are taken out of the base weights, which change by that."""
        return self.init_lora_weights == "olora" or self.init_lora_weights.startswith("pissa")

    @property
    def needs_own_base(self) -> bool:
        """True if the adapter cannot be loaded beside others into one copy of the base model: of what it trains beside
        the outputs of layers, peft mixes up the parts of several adapters, or refuses them."""
        return self.bias != "none" or bool(self.modules_to_save or self.trainable_tokens)


class Quantization(Section):
    """Quantisation of the base weights, used by QLoRA."""

    bits: Literal[4, 8] = 4
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Precision = "auto"
    """`auto`: the precision of the job."""


class Export(Section):
    """Settings of the export stage."""

    formats: list[ExportFormat] = Field(default=["adapter"], min_length=1)
    dtype: ExportDtype = ""
    """Number format of merged weights; empty: that of the base model's weights."""
    merge_base: MergeBase = "trained"
    """Base weights that a QLoRA adapter is merged into."""
    gguf_types: list[GgufType] = Field(default=[])
    """Types of the GGUF files; empty: q8_0, and f16 for adapters."""
    hub: HubPush | None = None
    """Repository of the hub that the package is pushed to; None: none."""

    @property
    def distinct_gguf_types(self) -> list[GgufType]:
        """Types of the GGUF files to make, each once."""
        return list(dict.fromkeys(self.gguf_types or ["q8_0"]))

    @property
    def quantized_gguf_types(self) -> list[GgufType]:
        """Those of them that llama.cpp's library makes; none without the form `gguf`."""
        if "gguf" not in self.formats:
            return []
        return [type_ for type_ in self.distinct_gguf_types if type_ not in CONVERTED_TYPES]

    @property
    def adapter_gguf_types(self) -> list[GgufType]:
        """Types of the GGUF files with the adapter alone to make, each once; none without the form `gguf_adapter`."""
        if "gguf_adapter" not in self.formats:
            return []
        types: list[GgufType] = self.gguf_types or ["f16"]
        return [type_ for type_ in dict.fromkeys(types) if type_ in CONVERTED_TYPES]


Parallelism = Literal["auto", "ddp", "zero2", "zero2_offload", "fsdp"]
"""Ways to divide a training among its processes; ResourceSpec.parallelism in the protos describes each."""


class Resources(Section):
    """The resources that the job needs on a node."""

    pool: str = Field(default="default", pattern=r"^[a-z][a-z0-9-]{0,30}$")
    gpus: int | None = Field(default=None, ge=0, le=64)
    """None: one GPU for each process if the node has one, otherwise none."""
    world_size: int | None = Field(default=None, ge=1, le=64)
    """Number of processes that train together, each on its own device. None: `gpus`, or 1 on a CPU."""
    parallelism: Parallelism = "auto"

    @property
    def uses_deepspeed(self) -> bool:
        """True if DeepSpeed divides the gradients and the optimizer's states (ZeRO)."""
        return self.parallelism in DEEPSPEED

    @property
    def divides_weights(self) -> bool:
        """True if each process has a share of the weights only (PyTorch FSDP2)."""
        return self.parallelism == "fsdp"

    @property
    def divides_optimizer(self) -> bool:
        """True if each process has a share of the optimizer's states only."""
        return self.uses_deepspeed or self.divides_weights


SecretUse = Literal["hub_token", "hub_write_token"]
PUSH_USE: Final = "hub_write_token"
"""Use of the secret with the token for a push to the hub."""

LabelKey = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class JobConfig(Section):
    """The complete configuration of a job. `job_config` builds one from a spec and its recipe."""

    display_name: str = Field(default="", max_length=128)
    task: str = Field(default="sft", max_length=256)
    labels: dict[LabelKey, Annotated[str, Field(max_length=256)]] = Field(default={}, max_length=64)
    base_model: str = Field(min_length=1, max_length=512)
    method: Method = "auto"
    recipe: str = "default"
    chat_template: Annotated[str, Field(min_length=1), kib(32)] | None = None
    system_prompt: Annotated[str, kib(16)] | None = None
    training_data: list[DataSource] = Field(default=[], max_length=MAX_SOURCES)
    phases: list[TrainingPhase] = Field(default=[], max_length=16)
    evaluation_data: list[DataSource] = Field(default=[], max_length=32)
    holdout_fraction: float = Field(default=0.1, ge=0, le=0.5)
    hyperparameters: Hyperparameters = Hyperparameters()
    lora: Lora = Lora()
    quantization: Quantization = Quantization()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    integrations: list[Integration] = Field(default=[], max_length=MAX_INTEGRATIONS)
    resources: Resources = Resources()
    secrets: dict[SecretUse, Annotated[str, Field(pattern=NAME_PATTERN)]] = Field(default={})
    max_attempts: int = Field(default=3, ge=1, le=20)
    seed: int = Field(default=42, ge=0, le=2**32 - 1)
    priority: int = Field(default=0, ge=-10, le=10)
    start_from: str = Field(default="", max_length=128)
    """The adapter that training starts from, as a gateway has looked it up: `ft:<job_id>@<step>`, or the id of an
    uploaded one. Empty: none."""
    start_mode: StartMode = "continue"

    @property
    def evaluates_while_training(self) -> bool:
        """True if rows are held out; otherwise nothing is evaluated and the last checkpoint counts as the best."""
        return bool(self.evaluation_data) or self.holdout_fraction > 0

    @property
    def world_size(self) -> int:
        """Number of processes that train together."""
        return self.resources.world_size or max(self.resources.gpus or 1, 1)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of an optimizer step, of all processes together."""
        return self.hyperparameters.accumulation * self.world_size

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, or packs if rows are packed, of all processes together."""
        return self.hyperparameters.micro_batch * self.micro_batches_per_step

    def sources(self) -> list[DataSource]:
        """Returns all data sources of the job, in the order they are named."""
        phases = (source for phase in self.phases for source in phase.training_data)
        return [*self.training_data, *phases, *self.evaluation_data]

    def dataset_ids(self) -> list[str]:
        """Returns the ids of all datasets of the job without duplicates, in the order they are named."""
        return list(dict.fromkeys(source.dataset for source in self.sources()))


def job_config(spec: Mapping[str, Any]) -> JobConfig:
    """Builds the configuration of `spec`, a dict from `spec_proto.spec_to_dict` or a TOML file, and its recipe.

    Raises JobError("INVALID_CONFIG") with one violation for each invalid field; paths start with `spec.`.
    """
    preset, unknown = _preset(spec)
    values = merge(preset.values, spec)
    violations = [Violation(path, "holds a NUL character; remove it.") for path in paths_with_nul(spec, "spec")]
    violations += [*exclusive_fields(spec), *mappings_with_template(spec), *adapter_conflicts(values)]
    violations += [*schedule_conflicts(values), *resource_conflicts(values), *streaming_conflicts(values)]
    violations += [*export_conflicts(values), *push_conflicts(values)]
    if not spec.get("training_data") and not spec.get("phases"):
        violations.append(Violation("spec.training_data", "is empty; name at least one dataset."))
    try:
        config = JobConfig.model_validate(values)
    except ValidationError as error:
        violations += [violation(detail, JobConfig, preset.values) for detail in error.errors()]
    if violations:
        raise _invalid([*(unknown.violations if unknown else ()), *violations])
    if unknown:
        raise unknown
    if not config.display_name:
        config.display_name = default_display_name(config)
    return config


def default_display_name(config: JobConfig) -> str:
    """Returns the name of a job to which nobody gave one."""
    first = config.dataset_ids()[0]
    # The commit is not part of the name: a pinned dataset makes the same job.
    shown = HubReference.parse(first).id if is_hub_reference(first) else first
    return f"{config.base_model} on {shown}"[:128]


def base_model_config(base_model: str) -> JobConfig:
    """Returns the settings of an evaluation or export of a base model alone: those of the default recipe, without
    rows."""
    return JobConfig.model_validate(merge(recipe("default").values, {"base_model": base_model}))


def with_section(config: JobConfig, name: str, changes: Mapping[str, Any], clear: Collection[str] = ()) -> JobConfig:
    """Returns `config` with `changes` merged into its section `name`, such as "evaluation". Fields in `clear` get their
    default first.

    Raises JobError("INVALID_CONFIG"); its field paths start at the section: `spec.num_samples`.
    """
    section = getattr(config, name)
    before = {key: value for key, value in section.model_dump().items() if key not in clear}
    try:
        changed = type(section).model_validate(merge(before, changes))
    except ValidationError as error:
        raise _invalid([violation(detail, type(section), before) for detail in error.errors()]) from error
    return config.model_copy(update={name: changed})


def _preset(spec: Mapping[str, Any]) -> tuple[Recipe, JobError | None]:
    """Returns the spec's recipe, or the default recipe and an error if the name is unknown."""
    name = spec.get("recipe") or "default"
    try:
        return recipe(name if isinstance(name, str) else "default"), None
    except JobError as unknown:
        return recipe("default"), unknown


def unsupported(config: JobConfig) -> list[Violation]:
    """Returns a violation for each requested feature that this version lacks; such a job is refused."""
    found: list[Violation] = []

    def refuse(field: str, description: str) -> None:
        found.append(Violation(f"spec.{field}", description))

    if config.start_from.startswith("ds_") and config.start_mode == "new":
        refuse("start_mode", "A new adapter on top of an uploaded one is not available yet; use continue.")
    for index, source in enumerate(config.evaluation_data):
        if source.weight != 1:
            description = f"{source.weight:g} given; every held-out row is evaluated once, so the weight must be 1."
            refuse(f"evaluation_data[{index}].weight", description)
    return found


def integration_config(values: Mapping[str, Any]) -> Integration:
    """Returns the settings of one integration. Raises JobError("INVALID_CONFIG"); its paths start with `spec.`."""
    try:
        return Integration.model_validate(values)
    except ValidationError as error:
        raise _invalid([violation(detail, Integration, {}) for detail in error.errors()]) from error


def _invalid(violations: Sequence[Violation]) -> JobError:
    first = f"{violations[0].field}: {violations[0].description}"
    more = f" And {len(violations) - 1} more." if len(violations) > 1 else ""
    return JobError("INVALID_CONFIG", first + more, "Correct the named fields and try again.", violations)
