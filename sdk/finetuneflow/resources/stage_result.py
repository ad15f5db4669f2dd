"""Results of the four stages."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import Resource
from finetuneflow.resources.estimate import ResourceEstimate
from finetuneflow.resources.hardware import Hardware


@dataclass(frozen=True, kw_only=True)
class BaseModelIdentity(Resource):
    """Identity of the weights that were trained on."""

    id: str
    """Public id: `org/name` or a catalogue alias."""
    revision: str
    """Commit or package version of the files."""
    weights_sha256: str
    """SHA-256 over the weight files, in hexadecimal."""
    num_parameters: int
    """Number of parameters, read from the headers of the files."""
    context_length: int
    """Maximum sequence length in tokens."""
    architecture: str
    """Architecture class in the model's config, such as LlamaForCausalLM."""


@dataclass(frozen=True, kw_only=True)
class LanguageCount(Resource):
    """Number of texts of a role in a language."""

    role: str
    """Role such as system, user or assistant; for rows that are not conversations, prompt or completion."""
    language: str
    """Language code such as en, de or zh-Hant. Empty if the text is too short, mixed, or not in a language (numbers,
    code)."""
    num_texts: int
    """Number of texts."""


@dataclass(frozen=True, kw_only=True)
class DataStatistics(Resource):
    """Statistics of tokenized rows (of examples, if a template makes several per row).

    num_examples, num_duplicates, num_dropped, num_too_long and num_left_out are disjoint: with weights of 1 and a
    two-way split, the sums over both halves equal the number of rows read.
    """

    num_examples: int
    """Rows that are trained or evaluated on, multiplied by their weight."""
    num_tokens: int
    """Tokens of all rows after truncation."""
    num_trained_tokens: int
    """Trained tokens: those that the loss is computed on."""
    num_truncated: int
    """Rows among num_examples that were truncated (truncation KEEP_START or KEEP_END). A row without trained tokens
    after truncation is counted in num_dropped instead."""
    num_duplicates: int
    """Rows dropped as duplicates of an earlier row."""
    max_tokens: int
    """Tokens of the longest row after truncation."""
    mean_tokens: float
    """Mean tokens per row after truncation."""
    format: str
    """Detected or given row format: chat, question_answer, instruction, prompt_completion, text or tokenized."""
    num_dropped: int
    """Rows dropped because they have no trained tokens: max_length truncates every answer, or no turn is trained."""
    num_left_out: int
    """Rows dropped because they are incomplete, for example without an answer (at most a tenth of a source's rows;
    beyond that the job is refused), or because the row template writes nothing for them (counted in the report as
    TEMPLATE_WROTE_NOTHING)."""
    percentiles: dict[int, int]
    """Percentiles of the row length: from the percentage (50, 90, 95, 99) to tokens."""
    histogram: dict[int, int]
    """Histogram of the row length: from the inclusive upper bound in tokens, a power of two, to the number of rows
    above the previous bound."""
    roles: dict[str, int]
    """Number of turns of conversations, by role."""
    scripts: dict[str, int]
    """Number of rows by the writing system of their answers, such as latin, cyrillic or cjk; empty for rows without
    letters."""
    num_too_long: int
    """Rows dropped because they exceed max_length (truncation DROP)."""
    languages: tuple[LanguageCount, ...]
    """Languages by role, the most frequent language of each role first. Sampled from the first 1,000 rows and every
    16th row after them, at most 400 characters per text. Empty if the probe's machine has no pycld2 (Linux on ARM,
    unless installed manually)."""


@dataclass(frozen=True, kw_only=True)
class PhaseStatistics(Resource):
    """Statistics of one phase of a curriculum."""

    display_name: str
    """Display name of the phase."""
    num_epochs: float
    """Epochs over the phase's rows."""
    first_step: int
    """First optimizer step of the phase, from 1; it may include the last rows of the previous phase."""
    training_data: DataStatistics
    """Statistics of the phase's rows."""
    num_packed_sequences: int
    """Number of sequences per epoch with packing, whether or not packing is enabled."""


@dataclass(frozen=True, kw_only=True)
class HubDataset(Resource):
    """A file of rows on the hub, as preflight resolved it."""

    asked: str
    """Reference in the spec: `hf://owner/name`, with or without revision and path."""
    pinned: str
    """Reference in the resolved spec, with commit and path; it always names the same bytes."""
    revision: str
    """Commit, 40 hexadecimal digits."""
    filename: str
    """Name of the file without its folders."""
    size_bytes: int
    """Size of the file in bytes, as stored on the hub."""
    sha256: str
    """SHA-256 of the file, in hexadecimal."""


@dataclass(frozen=True, kw_only=True)
class PreflightResult(Resource):
    """Result of a successful preflight."""

    base_model: BaseModelIdentity
    """Identity of the base model's files."""
    training_data: DataStatistics
    """Statistics of the training rows."""
    evaluation_data: DataStatistics | None
    """Statistics of the held-out rows."""
    total_steps: int
    """Optimizer steps of the training."""
    hardware: Hardware
    """Hardware that automatic values are based on: a trainer of the job's pool, or the probe's if no trainer was up."""
    warnings: tuple[str, ...]
    """Warnings about rows and settings; each was also sent as a warning event."""
    estimate: ResourceEstimate | None
    """Estimated needs of the training on that hardware. Its speed is assumed from the hardware; `probe.estimate` also
    uses the speeds of earlier trainings."""
    shards_content_key: str
    """SHA-256 over everything that determines the token shards: files, tokenizer, template, mapping, weights, split,
    seed, lengths. In hexadecimal."""
    shards_reused: bool
    """True if the shards of an earlier job with the same content key were reused and nothing was tokenized."""
    phases: tuple[PhaseStatistics, ...]
    """Phases of a curriculum, in order; training_data sums them, counting each row once. Empty without phases."""
    num_packed_sequences: int
    """Number of sequences per epoch with packing, whether or not packing is enabled."""
    packing_efficiency: float
    """Fraction of the tokens in packed sequences that are not padding. Range [0, 1]."""
    hub_datasets: tuple[HubDataset, ...]
    """Files read from the hub, each once, in the order of the spec. Empty if all datasets were uploaded."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult(Resource):
    """Result of the training."""

    total_steps: int
    """Completed optimizer steps."""
    train_loss: float
    """Mean training loss over the whole job, in nats per trained token; repeated steps count once."""
    final_train_loss: float
    """Training loss of the last log event, in nats per trained token."""
    best_eval_loss: float | None
    """Lowest evaluation loss in nats per trained token. None without held-out rows."""
    best_step: int
    """Step of the checkpoint that is evaluated and exported: the best one, or the last one without held-out rows."""
    final_eval_loss: float | None
    """Evaluation loss at the last step, in nats per trained token. None without held-out rows."""
    train_runtime_seconds: float
    """Seconds of training over all attempts, without loading."""
    train_samples_per_second: float
    """Rows trained per second of train_runtime_seconds."""
    train_tokens_per_second: float
    """Tokens trained per second of train_runtime_seconds, without padding."""
    early_stopped: bool
    """True if early stopping ended the training before the planned number of steps."""
    num_trainable_parameters: int
    """Number of trained parameters."""
    peak_memory_bytes: int
    """Peak resident memory of the training process, in bytes."""


@dataclass(frozen=True, kw_only=True)
class InferenceSample(Resource):
    """A prompt answered by both models."""

    instruction: str
    """The prompt."""
    input: str
    """Additional input of the row; empty if it has none."""
    expected_output: str
    """Answer in the held-out row; empty for a caller's prompt."""
    model_output: str
    """Answer of the tuned model, or of the model in training."""
    output_length: int
    """Number of tokens in model_output."""
    base_output: str
    """Answer of the base model. Empty in training."""
    step: int
    """Optimizer step after which the model in training answered. 0 in an evaluation."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Resource):
    """Comparison of base and tuned model on the same held-out rows, computed in fp32."""

    base_loss: float | None
    """Loss of the base model in nats per trained token. None if not measured."""
    tuned_loss: float | None
    """Loss of the tuned model in nats per trained token. None if not measured."""
    base_perplexity: float | None
    """exp(base_loss). None if not measured."""
    tuned_perplexity: float | None
    """exp(tuned_loss). None if not measured."""
    num_examples: int
    """Number of held-out rows."""
    num_trained_tokens: int
    """Number of tokens that the loss was computed on."""
    samples: tuple[InferenceSample, ...]
    """Answers of both models, side by side."""


@dataclass(frozen=True, kw_only=True)
class ExportResult(Resource):
    """Result of the export."""

    package_path: str
    """Path of finetuneflow_export.zip in the artifact store, relative to the tenant's folder."""
    package_sha256: str
    """SHA-256 of the zip, in hexadecimal."""
    package_size_bytes: int
    """Size of the zip in bytes."""
