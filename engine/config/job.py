"""Every field of a job with its range and default: the one place both are decided.

The models mirror `FineTuningJobSpec` field for field and name for name. An automatic value is `"auto"`, or None
where the type has no room for a word; preflight replaces it.
"""

import difflib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import annotated_types
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from engine.config.hub_reference import HubReference, is_hub_reference
from engine.config.recipes import Recipe, merge, recipe
from engine.errors import JobError, Violation

Method = Literal["auto", "lora", "qlora", "full"]
Precision = Literal["auto", "bf16", "fp16", "fp32"]
LossScope = Literal["response", "all"]
Truncation = Literal["keep_start", "keep_end", "drop"]
ExportFormat = Literal["adapter", "merged", "gguf"]
Scheduler = Literal[
    "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
]
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


def _kib(limit: int) -> AfterValidator:
    def check(text: str) -> str:
        size = len(text.encode())
        if size > limit * 1024:
            raise ValueError(f"{size:,} bytes are too many; at most {limit} KiB are allowed")
        return text

    return AfterValidator(check)


def _named_well(dataset: str) -> str:
    if is_hub_reference(dataset):
        HubReference.parse(dataset)
    return dataset


def _written(template: str) -> str:
    if not template.strip():
        raise ValueError("an empty template makes no example of any row; leave it out, and the rows are the examples")
    return template


class _Section(BaseModel):
    # Strict: "3" for a number is a mistake of the caller's that would otherwise surface hours later, as another value.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, validate_default=False)


class DataSource(_Section):
    """One dataset of a job."""

    dataset: Annotated[str, Field(min_length=1), AfterValidator(_named_well)]
    """The id that UploadDataset returned, or a dataset of the hub (`engine.config.hub_reference`)."""
    weight: float = Field(default=1.0, gt=0, le=100)
    """How often the rows are seen in one epoch."""
    mapping: dict[Column, Annotated[str, Field(min_length=1)]] = {}
    """From our column names to the file's."""
    template: Annotated[str, AfterValidator(_written), _kib(64)] | None = None
    """A Jinja template that turns a row into examples; not with mapping."""
    format: RowFormat | None = None
    """What the rows are; None: detected from the columns of the first one."""


class TrainingPhase(_Section):
    """One step of a curriculum. Phases are trained one after the other, with one schedule over all of them."""

    display_name: str = Field(default="", max_length=128)
    training_data: list[DataSource] = Field(min_length=1, max_length=32)
    num_epochs: float = Field(gt=0, le=1000)


class Hyperparameters(_Section):
    """Optimisation, batching and schedule."""

    num_epochs: float = Field(default=3.0, gt=0, le=1000)
    max_steps: int | None = Field(default=None, ge=1, le=10_000_000)
    """Optimizer steps; when set it overrides num_epochs."""
    learning_rate: float = Field(default=2e-4, gt=0, le=1)
    per_device_train_batch_size: int = Field(default=4, ge=1, le=1024)
    per_device_eval_batch_size: int = Field(default=4, ge=1, le=1024)
    gradient_accumulation_steps: int = Field(default=4, ge=1, le=1024)
    max_length: int = Field(default=2048, ge=8, le=1_048_576)
    """Tokens of a row; `truncation` says what becomes of longer ones."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    warmup_steps: int | None = Field(default=None, ge=0, le=10_000_000)
    """Overrides warmup_ratio."""
    weight_decay: float = Field(default=0.01, ge=0, le=1)
    lr_scheduler_type: Scheduler = "cosine"
    optim: Optimizer = "auto"
    precision: Precision = "auto"
    gradient_checkpointing: bool | None = None
    """None: preflight decides by memory."""
    max_grad_norm: float = Field(default=1.0, ge=0, le=1000)
    """0 turns clipping off."""
    logging_steps: int = Field(default=10, ge=1, le=1_000_000)
    eval_steps: int = Field(default=100, ge=1, le=1_000_000)
    save_steps: int = Field(default=200, ge=1, le=1_000_000)
    save_total_limit: int = Field(default=3, ge=1, le=1000)
    early_stopping_patience: int = Field(default=3, ge=0, le=1000)
    """Evaluations without improvement after which training stops; 0 never stops."""
    early_stopping_threshold: float = Field(default=0.0, ge=0, le=100)
    loss_on: LossScope = "response"
    packing: bool = False
    group_by_length: bool = False
    truncation: Truncation = "keep_start"
    """What becomes of rows longer than max_length: the beginning is kept, or the end, or nothing."""


class Lora(_Section):
    """Adapter shape."""

    r: int = Field(default=16, ge=1, le=1024)
    lora_alpha: float = Field(default=32.0, gt=0, le=4096)
    lora_dropout: float = Field(default=0.05, ge=0, lt=1)
    bias: Literal["none", "all", "lora_only"] = "none"
    target_modules: list[Annotated[str, Field(min_length=1, max_length=256)]] = []
    """Empty, or `all-linear` alone: every linear layer except the head."""
    use_rslora: bool = False

    @field_validator("target_modules")
    @classmethod
    def _every_layer(cls, names: list[str]) -> list[str]:
        return [] if names == ["all-linear"] else names


class Quantization(_Section):
    """Base weights in fewer bits."""

    bits: Literal[4, 8] = 4
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Precision = "auto"
    """auto: the job's precision."""


class Evaluation(_Section):
    """What stage 3 measures."""

    enabled: bool = True
    num_samples: int = Field(default=5, ge=0, le=100)
    prompts: list[Annotated[str, Field(min_length=1), _kib(16)]] = Field(default=[], max_length=100)
    max_new_tokens: int = Field(default=128, ge=1, le=4096)


class Export(_Section):
    """What stage 4 packs."""

    formats: list[ExportFormat] = Field(default=["adapter"], min_length=1)


class Integration(_Section):
    """A place outside that follows the job."""

    kind: Literal["tensorboard", "mlflow", "wandb", "hub"]
    settings: dict[str, str] = {}


class Resources(_Section):
    """What the job needs of a node."""

    pool: str = Field(default="default", pattern=r"^[a-z][a-z0-9-]{0,30}$")
    gpus: int | None = Field(default=None, ge=0, le=64)
    """None: one where there is one, else none."""


LabelKey = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]


class JobConfig(_Section):
    """A job's whole configuration. Build one with `job_config`, which puts the recipe under the caller's values."""

    display_name: str = Field(default="", max_length=128)
    task: str = Field(default="sft", max_length=256)
    labels: dict[LabelKey, Annotated[str, Field(max_length=256)]] = Field(default={}, max_length=64)
    base_model: str = Field(min_length=1, max_length=512)
    method: Method = "auto"
    recipe: str = "default"
    chat_template: Annotated[str, Field(min_length=1), _kib(32)] | None = None
    system_prompt: Annotated[str, _kib(16)] | None = None
    training_data: list[DataSource] = Field(default=[], max_length=32)
    phases: list[TrainingPhase] = Field(default=[], max_length=16)
    evaluation_data: list[DataSource] = Field(default=[], max_length=32)
    holdout_fraction: float = Field(default=0.1, ge=0, le=0.5)
    hyperparameters: Hyperparameters = Hyperparameters()
    lora: Lora = Lora()
    quantization: Quantization = Quantization()
    evaluation: Evaluation = Evaluation()
    export: Export = Export()
    integrations: list[Integration] = []
    resources: Resources = Resources()
    secrets: list[Annotated[str, Field(min_length=1, max_length=128)]] = []
    max_attempts: int = Field(default=3, ge=1, le=20)
    seed: int = Field(default=42, ge=0, le=2**32 - 1)

    @property
    def evaluates_while_training(self) -> bool:
        """Whether there are held-out rows: without them nothing is evaluated and the last checkpoint is the best."""
        return bool(self.evaluation_data) or self.holdout_fraction > 0

    def sources(self) -> list[DataSource]:
        """Everything the job reads, in the order it is named."""
        phases = (source for phase in self.phases for source in phase.training_data)
        return [*self.training_data, *phases, *self.evaluation_data]

    def dataset_ids(self) -> list[str]:
        """Ids of every dataset the job reads, each once, in the order they are named."""
        return list(dict.fromkeys(source.dataset for source in self.sources()))


def job_config(spec: Mapping[str, Any]) -> JobConfig:
    """The configuration that `spec` (as `wire.spec_to_dict` gives it, or out of a TOML file) and its recipe make.

    Raises JobError("INVALID_CONFIG") with one violation for each field at fault, its path starting with `spec.`.
    """
    preset, unknown = _preset(spec)
    violations = [Violation(path, "holds a NUL character; remove it.") for path in _with_nuls(spec, "spec")]
    violations += [*_exclusive(spec), *_mapped_and_templated(spec)]
    if not spec.get("training_data") and not spec.get("phases"):
        violations.append(Violation("spec.training_data", "is empty; name at least one dataset."))
    values = merge(preset.values, spec)
    try:
        config = JobConfig.model_validate(values)
    except ValidationError as error:
        violations += [_violation(detail, preset.values) for detail in error.errors()]
    if violations:
        raise _invalid([*(unknown.violations if unknown else ()), *violations])
    if unknown:
        raise unknown
    if not config.display_name:
        first = config.dataset_ids()[0]
        # Pinned or not, it is the same job.
        shown = HubReference.parse(first).id if is_hub_reference(first) else first
        config.display_name = f"{config.base_model} on {shown}"[:128]
    return config


def _preset(spec: Mapping[str, Any]) -> tuple[Recipe, JobError | None]:
    """The spec's recipe; the default one, with what is to be said of it, where there is none of that name."""
    name = spec.get("recipe") or "default"
    try:
        return recipe(name if isinstance(name, str) else "default"), None
    except JobError as unknown:
        return recipe("default"), unknown


def unsupported(config: JobConfig) -> list[Violation]:
    """What `config` asks for that this version has no machinery for; such a job is refused, not run without it."""
    found: list[Violation] = []

    def refuse(field: str, description: str) -> None:
        found.append(Violation(f"spec.{field}", description))

    if config.base_model.startswith("ft:"):
        refuse("base_model", "Training on a tuned model is not available yet; name a base model.")
    for index, source in enumerate(config.evaluation_data):
        if source.weight != 1:
            description = f"Rows to evaluate on are each seen once: leave it 1, not {source.weight:g}."
            refuse(f"evaluation_data[{index}].weight", description)
    for index, format_ in enumerate(config.export.formats):
        if format_ != "adapter":
            refuse(f"export.formats[{index}]", f"Export as {format_} is not available yet; name adapter.")
    if config.integrations:
        refuse("integrations", "Integrations are not available yet; leave them out.")
    if config.secrets:
        refuse("secrets", "Secrets are not available yet; leave them out.")
    if (config.resources.gpus or 0) > 1:
        asked = f"{config.resources.gpus} asked for; ask for 1, or leave it out."
        refuse("resources.gpus", f"Training on several GPUs is not available yet: {asked}")
    return found


def _exclusive(spec: Mapping[str, Any]) -> list[Violation]:
    """Pairs that only the caller can put in conflict: what a recipe says gives way by itself (`recipes.merge`)."""
    given = spec.get("hyperparameters")
    given = given if isinstance(given, Mapping) else {}
    found = []
    if given.get("warmup_ratio") is not None and given.get("warmup_steps") is not None:
        both = f"{given['warmup_ratio']!r} given together with warmup_steps = {given['warmup_steps']!r}"
        found.append(Violation("spec.hyperparameters.warmup_ratio", f"{both}; set one of the two."))
    if spec.get("phases") and spec.get("training_data"):
        description = "given together with training_data; put those rows into a phase of their own, or leave one out."
        found.append(Violation("spec.phases", description))
    if spec.get("phases") and given.get("max_steps") is not None:
        description = (
            f"{given['max_steps']!r} given together with phases, whose num_epochs say how long each is; leave it out."
        )
        found.append(Violation("spec.hyperparameters.max_steps", description))
    return found


def _mapped_and_templated(spec: Mapping[str, Any]) -> list[Violation]:
    found = []
    phases = spec.get("phases")
    listed = {name: spec.get(name) for name in ("training_data", "evaluation_data")}
    for number, phase in enumerate(phases if isinstance(phases, list) else ()):
        if isinstance(phase, Mapping):
            listed[f"phases[{number}].training_data"] = phase.get("training_data")
    for name, sources in listed.items():
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            if isinstance(source, Mapping) and source.get("mapping") and source.get("template") is not None:
                description = "given together with template, which names the file's columns itself; leave one out."
                found.append(Violation(f"spec.{name}[{index}].mapping", description))
    return found


def _with_nuls(value: object, path: str) -> Iterator[str]:
    """Paths of texts that no database and no tokenizer takes as they are."""
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _with_nuls(key, path)
            yield from _with_nuls(inner, f"{path}.{key}")
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from _with_nuls(inner, f"{path}[{index}]")


def _invalid(violations: Sequence[Violation]) -> JobError:
    first = f"{violations[0].field}: {violations[0].description}"
    more = f" And {len(violations) - 1} more." if len(violations) > 1 else ""
    return JobError("INVALID_CONFIG", first + more, "Correct the named fields and send the job again.", violations)


def _violation(detail: ErrorDetails, preset: Mapping[str, Any]) -> Violation:
    loc = [part for part in detail["loc"] if part != "[key]"]
    path = "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    field, siblings = _look_up(loc)
    given = detail["input"]
    if detail["type"] == "extra_forbidden":
        return Violation(path, _unknown_key(str(loc[-1]), siblings))
    if detail["type"] == "missing":
        return Violation(path, "is required; set it.")
    if "[key]" in detail["loc"]:
        keys: Sequence[str] = typing.get_args(Column) if "mapping" in loc else ()
        allowed = f"one of {', '.join(keys)}" if keys else "a key matching [a-z][a-z0-9_-]{0,62}"
        return Violation(path, f"{given!r} is not {allowed}.{_nearest(str(given), keys)}")
    literals = _literals(field.annotation) if field else []
    # An entry of a list or table has rules of its own, which only pydantic's message knows.
    if (
        field is None
        or detail["type"] == "value_error"
        or (loc[-1] not in siblings and not (literals and isinstance(loc[-1], int)))
    ):
        return Violation(path, f"{_shown(given)} given: {detail['msg'].removeprefix('Value error, ')}.")
    described = _default(loc, field, preset)
    hint = _nearest(given, literals) if isinstance(given, str) else ""
    return Violation(path, f"{_shown(given)} given; must be {_allowed(field, literals)}{described}.{hint}")


def _look_up(loc: Sequence[str | int]) -> tuple[FieldInfo | None, Sequence[str]]:
    """The field that a path leads to, and the names allowed beside it."""
    model: type[BaseModel] = JobConfig
    field: FieldInfo | None = None
    siblings: Sequence[str] = ()
    for part in loc:
        if isinstance(part, int):
            continue
        siblings = list(model.model_fields)
        if part not in model.model_fields:
            return None, siblings
        field = model.model_fields[part]
        inner = [t for t in _flatten(field.annotation) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return field, siblings


def _flatten(annotation: Any) -> list[Any]:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal or not arguments:
        return [annotation]
    return [leaf for argument in arguments for leaf in _flatten(argument)]


def _literals(annotation: Any) -> list[Any]:
    return [value for leaf in _flatten(annotation) for value in typing.get_args(leaf)]


def _allowed(field: FieldInfo, literals: Sequence[Any]) -> str:
    if literals:
        return "one of " + ", ".join(str(value) for value in literals)
    low, high = "(-inf", "inf)"
    lengths: dict[str, int] = {}
    for rule in field.metadata:
        match rule:
            case annotated_types.Gt(gt=bound):
                low = f"({_number(bound)}"
            case annotated_types.Ge(ge=bound):
                low = f"[{_number(bound)}"
            case annotated_types.Lt(lt=bound):
                high = f"{_number(bound)})"
            case annotated_types.Le(le=bound):
                high = f"{_number(bound)}]"
            case annotated_types.MinLen(min_length=bound):
                lengths["at least"] = bound
            case annotated_types.MaxLen(max_length=bound):
                lengths["at most"] = bound
    leaves = _flatten(field.annotation)
    pattern = next((rule.pattern for rule in field.metadata if getattr(rule, "pattern", None)), None)
    if pattern:
        return f"text matching {str(pattern).strip('^$')}"
    if bool in leaves:
        return "true or false"
    if int in leaves:
        return f"a whole number in {low}, {high}"
    if float in leaves:
        return f"a number in {low}, {high}"
    span = " and ".join(f"{word} {bound}" for word, bound in lengths.items())
    several = typing.get_origin(field.annotation) in (list, dict)
    unit = "entries" if several else "characters"
    kind = {list: "a list", dict: "a table"}.get(typing.get_origin(field.annotation) or str, "text")
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
        kind = "a table"
    return f"{kind} of {span} {unit}" if span else kind


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _default(loc: Sequence[str | int], field: FieldInfo, preset: Mapping[str, Any]) -> str:
    value: Any = preset
    for part in loc:
        value = value.get(part) if isinstance(value, Mapping) else None
    if value is None and not field.is_required():
        value = field.get_default(call_default_factory=True)
    if value is None or value == "" or isinstance(value, list | dict | BaseModel):
        return ""
    shown = str(value).lower() if isinstance(value, bool) else value
    return f"; default {shown}"


def _nearest(given: Any, known: Sequence[Any]) -> str:
    close = difflib.get_close_matches(str(given), [str(value) for value in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def _unknown_key(key: str, siblings: Sequence[str]) -> str:
    # Fields of every section compete: a key in the wrong section is the commonest mistake in a flat file.
    elsewhere = _all_paths()
    known = list(dict.fromkeys([*siblings, *elsewhere]))
    close = difflib.get_close_matches(re.sub(r"^num_train_", "num_", key), known, n=1, cutoff=0.6)
    if not close:
        return f"There is no such key. Known here: {', '.join(siblings)}."
    nearest = close[0] if close[0] in siblings else f"spec.{elsewhere[close[0]]}"
    return f"There is no such key. Did you mean {nearest}?"


def _all_paths() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in JobConfig.model_fields.items():
        found.setdefault(name, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            for inner in field.annotation.model_fields:
                found.setdefault(inner, f"{name}.{inner}")
    return found
