"""Results of the four stages."""

from __future__ import annotations

from dataclasses import dataclass

from finetuneflow.resources.convert import OpenEnum, Resource
from finetuneflow.resources.estimate import ResourceEstimate
from finetuneflow.resources.hardware import Hardware


@dataclass(frozen=True, kw_only=True)
class BaseModelIdentity(Resource):
    """Identity of the weights that were trained on."""

    id: str
    """Public id: `org/name`, a catalogue alias, or the name of a model with random weights."""
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
    tokenizer_path: str
    """Path of the tokenizer (tokenizer.json) in the artifact store, relative to the tenant's folder, if it was trained
    on the rows of the job; the id has its SHA-256 (`,tokenizer=corpus:<sha256>`). Empty for all other tokenizers."""


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
    """Estimated needs of the training on that hardware. Its speed is based on earlier trainings there, if any."""
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
    """Peak resident memory of the training process in the last attempt, in bytes; of several, the sum."""
    peak_gpu_memory_bytes: int | None
    """Peak memory that torch reserved on the GPU in the last attempt, in bytes; of several GPUs, that of the fullest.
    None on CPUs."""
    epochs: float
    """Passes over the training rows: 0.5 after half of them. 0 for trainings from before this field existed."""


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


class Conclusion(OpenEnum):
    """Conclusion of a comparison, at its confidence."""

    BETTER = "BETTER"
    """The tuned model is better."""
    WORSE = "WORSE"
    """The tuned model is worse."""
    NO_DIFFERENCE_SHOWN = "NO_DIFFERENCE_SHOWN"
    """The interval of the gain includes 0."""


class GateDecision(OpenEnum):
    """Decision about a tuned model."""

    PROMOTE = "PROMOTE"
    """Every condition holds."""
    REJECT = "REJECT"
    """A condition fails."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The rows do not show whether the conditions hold."""


@dataclass(frozen=True, kw_only=True)
class MetricComparison(Resource):
    """Both models compared by one metric."""

    name: str
    """Name of the metric; `loss` and `perplexity` come first."""
    higher_is_better: bool
    """False for metrics such as the loss, of which lower values are better."""
    base: float | None
    """Value of the base model over all rows. None if it is not a number."""
    tuned: float | None
    """Value of the tuned model over all rows. None if it is not a number."""
    gain: float | None
    """Gain of the tuned model, positive if it is better. None if a value is missing or has no direction."""
    gain_low: float | None
    """Lower end of the interval of the gain. None if there are too few rows."""
    gain_high: float | None
    """Upper end of the interval."""
    confidence: float
    """Confidence of the interval: 0.95."""
    num_rows: int
    """Number of rows that it was measured on."""
    num_improved: int
    """Number of rows on which the tuned model is better."""
    num_worsened: int
    """Number of rows on which the tuned model is worse."""
    p_value: float | None
    """For metrics that are right or wrong for each row: p-value of McNemar's exact test. None for others."""
    detectable_gain: float | None
    """Smallest true gain that this number of rows shows with a probability of 0.8. None if unknown."""
    conclusion: Conclusion | None
    """Conclusion of the comparison. None for metrics without a direction."""
    signature: str
    """Library, version and settings that computed it. Empty for metrics of FineTuneFlow itself."""


@dataclass(frozen=True, kw_only=True)
class ConditionResult(Resource):
    """Outcome of one condition of a gate."""

    sentence: str
    """The condition in words and what was measured."""
    outcome: GateDecision | None
    """PROMOTE if it holds, REJECT if it fails, or INCONCLUSIVE."""


@dataclass(frozen=True, kw_only=True)
class GateResult(Resource):
    """Decision of an evaluation's gate."""

    decision: GateDecision | None
    """REJECT if a condition fails, INCONCLUSIVE if none fails and one is inconclusive, otherwise PROMOTE."""
    conditions: tuple[ConditionResult, ...]
    """One for each condition, in the order of the spec."""


@dataclass(frozen=True, kw_only=True)
class Classification(Resource):
    """Right and wrong labels of answers."""

    labels: tuple[str, ...]
    """The labels, sorted."""
    base_confusion: tuple[int, ...]
    """Confusion matrix of the base model, row by row: a row for each expected label, a column for each answered one,
    and a last one for answers that are no label."""
    tuned_confusion: tuple[int, ...]
    """Confusion matrix of the tuned model, in the same form."""
    base_macro_f1: float
    """Unweighted mean of the F1 scores of all labels, base model. Range [0, 1]."""
    tuned_macro_f1: float
    """The same of the tuned model."""


@dataclass(frozen=True, kw_only=True)
class QuestionsResult(Resource):
    """Results of the critical questions."""

    num_questions: int
    """Number of questions."""
    num_passed: int
    """Number of questions that the tuned model passed."""
    num_passed_by_base: int
    """Number of questions that the base model passed."""
    num_must_pass: int
    """Number of questions that must pass."""
    failed_must_pass: tuple[str, ...]
    """Prompts of the questions that must pass and did not; at most 20, each cut at 200 characters."""


@dataclass(frozen=True, kw_only=True)
class Regression(Resource):
    """Losses on the regression set, which shows what the model has lost."""

    name: str
    """Name of the set: `general`, or the id of a dataset."""
    base_loss: float
    """Loss of the base model in nats per trained token."""
    tuned_loss: float
    """Loss of the tuned model in nats per trained token."""
    num_rows: int
    """Number of rows."""


@dataclass(frozen=True, kw_only=True)
class HarnessMetric(Resource):
    """Base and tuned model compared by one metric of a task of lm-evaluation-harness."""

    task: str
    """Name of the task, or of a group of tasks."""
    task_version: str
    """Version of the task, as its file states it. Empty if it states none."""
    metric: str
    """Name of the metric, such as exact_match or acc."""
    filter: str
    """Name of the filter that the answers went through. Empty for `none`."""
    base: float | None
    """Value of the base model. None if it is not a number."""
    base_stderr: float | None
    """Standard error of `base`. None if the harness computes none."""
    tuned: float | None
    """Value of the tuned model. None if it is not a number."""
    tuned_stderr: float | None
    """Standard error of `tuned`. None if the harness computes none."""
    higher_is_better: bool | None
    """True if higher values are better. None if the task does not say so."""
    num_rows: int
    """Number of rows; of a group, the rows of its tasks together."""
    num_fewshot: int
    """Number of examples in each prompt."""


@dataclass(frozen=True, kw_only=True)
class HarnessResult(Resource):
    """Values of lm-evaluation-harness, as it reports them."""

    version: str
    """Version of lm-evaluation-harness, such as 0.4.13."""
    limit: int | None
    """Maximum number of rows of each task. None: all rows."""
    chat_template: bool
    """True if prompts were written with the chat template of the job or the model. False if there is none."""
    metrics: tuple[HarnessMetric, ...]
    """Values by task, metric and filter; at most 200."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult(Resource):
    """Comparison of two models on the same rows. `base` is the model that `tuned` is compared with."""

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
    """Some answers of both models, side by side. `evaluations.rows` lists all of them."""
    metrics: tuple[MetricComparison, ...]
    """Both models compared by each metric, the loss first. Empty without held-out rows."""
    gate: GateResult | None
    """Decision of the gate. None without held-out rows."""
    num_answered: int
    """Number of held-out rows that both models answered."""
    precision: str
    """Number format in which both models were evaluated: fp32, bf16 or fp16."""
    weights: str
    """Form of the weights: `original`, or `quantized` as in training."""
    quantized_loss: float | None
    """For QLoRA: loss of the tuned model on the quantized weights that it was trained on. None if not measured."""
    classification: Classification | None
    """Right and wrong labels, where the expected answers are few distinct ones. None otherwise."""
    num_reused: int
    """Number of losses and answers that were read from earlier evaluations."""
    findings: tuple[str, ...]
    """Findings about the figures, and what would be better."""
    questions: QuestionsResult | None
    """Critical questions. None without any."""
    regression: Regression | None
    """Losses on the regression set. None if not measured."""
    rows_hash: str
    """Hash of the rows, the length of answers and the regression set: values of two evaluations with the same one
    compare."""
    single_model: bool
    """True if only one model was measured: its values are those named `tuned`; those of the base model, gains and
    conclusions are None, or 0 without meaning."""
    shown_regression: str
    """A sentence that names the losses on the regression set, if no condition of the gate is about them. Empty if there
    are none."""
    harness: HarnessResult | None
    """Values of lm-evaluation-harness. None without harness_tasks."""

    def metric(self, name: str) -> MetricComparison:
        """Returns the comparison by a metric. Raises KeyError if it was not measured."""
        for each in self.metrics:
            if each.name == name:
                return each
        raise KeyError(name)


class ExportFormat(OpenEnum):
    """A format of the exported model."""

    ADAPTER = "ADAPTER"
    """One zip with the adapter (for method FULL: the weights) as safetensors, the tokenizer, metrics and report."""
    MERGED = "MERGED"
    """The adapter merged into the base weights (for method FULL: the weights), as a model of safetensors in the folder
    `merged` of the package, with the tokenizer. transformers and vLLM load it without peft."""
    GGUF = "GGUF"
    """Files in GGUF for llama.cpp and Ollama in the folder `gguf` of the package, one for each of gguf_types: the
    adapter merged into the base weights, with tokenizer and chat template, and a Modelfile for Ollama if rows were
    conversations."""
    GGUF_ADAPTER = "GGUF_ADAPTER"
    """The adapter alone in GGUF, in the folder `gguf_adapter` of the package, one file for each of gguf_types:
    llama.cpp (`--lora`) and Ollama (ADAPTER) load it beside a GGUF file of the base model, which is not in the
    package."""


@dataclass(frozen=True, kw_only=True)
class ExportComparison(Resource):
    """The next-token probabilities of an exported form, compared with those of the checkpoint on the same rows; for a
    base model the checkpoint is the model itself."""

    rows: str
    """Source of the texts: `held_out` rows of the job, its evaluation's `prompts` if it has none, otherwise one
    `sentence`; for a base model `general`, questions and answers that every installation has."""
    num_rows: int
    """Number of rows; at most 64, of each the first 512 tokens."""
    num_positions: int
    """Number of compared positions, spread evenly over the rows."""
    mean_kl: float
    """Mean over the positions of the Kullback-Leibler divergence from the checkpoint's probabilities, in nats; at least
    0."""
    p99_kl: float
    """Its 99th percentile."""
    same_next_token: float
    """Share of positions whose most probable next token is the same. Range [0, 1]."""
    max_difference: float
    """Largest absolute difference of two logits."""
    checkpoint_dtype: str
    """Number format that the checkpoint was run in, on its quantized weights if it was trained on these; those of 8
    bits dequantized, because their layers also round what they multiply, which no weight can express."""
    max_mean_kl: float | None
    """Upper bound of mean_kl. None: none, as for GGUF files of other types than f32, f16, bf16 and q8_0: how much of a
    model these lose depends on the model, so no figure tells a wrong file from a correct one."""
    max_max_difference: float | None
    """Upper bound of max_difference. None: none."""


@dataclass(frozen=True, kw_only=True)
class GgufFile(Resource):
    """A GGUF file in a package."""

    file: str
    """Its path in the package."""
    type: str
    """Its type, as asked for: `q8_0`, `q4_k_m`, …."""
    tensor_types: dict[str, int]
    """Number of tensors of each type in the file, by name of the type, such as F32 and Q8_0. A file of type q4_k_m has
    Q4_K and Q6_K, and Q5_0 and Q8_0 in their place for tensors whose rows are no multiple of 256 numbers."""
    modelfile: str
    """Path of the Modelfile for Ollama in the package, which begins with the first file. Empty: no rows
    were conversations, or the base model that is exported has no chat template."""
    modelfile_gaps: tuple[str, ...]
    """Lines that the Modelfile should have and lacks, each with its reason (warning MODELFILE_INCOMPLETE):
    `TEMPLATE: …`."""


@dataclass(frozen=True, kw_only=True)
class ExportedForm(Resource):
    """One form of the model in a package."""

    format: ExportFormat
    """Its format."""
    path: str
    """Its folder in the package; empty: the package's own top folder."""
    size_bytes: int
    """Size of its weights in bytes."""
    dtype: str
    """Number format of most of its weights, such as `bfloat16`; of a GGUF file its type, such as `q8_0`."""
    merge_base: str
    """For MERGED, GGUF and GGUF_ADAPTER of method QLORA the base weights: `trained` or `original`; for GGUF_ADAPTER
    those that it was compared on, always `original`. Otherwise empty."""
    comparison: ExportComparison | None
    """Comparison with the checkpoint. None if the form was not run (`not_run`): then only its tensors were compared."""
    num_rendered_rows: int
    """Number of held-out conversations, at most 64, that the tokenizer and the chat template in its folder were seen to
    render to the ids that were prepared for the job; of a base model general ones, and the ids of the model's own
    tokenizer. 0: the job has no held-out conversations, an earlier version prepared them without their texts, or the
    base model has no chat template."""
    gguf: GgufFile | None
    """For GGUF and GGUF_ADAPTER the file; each file is a form of its own. None: another format."""
    not_run: str
    """Why the form was not run (warning VERIFIED_WITHOUT_MODEL): the model does not fit into memory, or transformers
    cannot read it. Empty if it was run, and in forms of earlier versions."""


@dataclass(frozen=True, kw_only=True)
class ServableBy(Resource):
    """A program that may serve a package."""

    reader: str
    """Its name: `peft`, `transformers`, `vllm`, `llama.cpp` or `ollama`."""
    format: ExportFormat | None
    """The form that it serves, or refuses. None: the package has no form that it reads."""
    refusal: str
    """Why it cannot serve it. Empty: it can."""
    command: str
    """How it serves the form: a shell command in the folder of the package; for `peft` and `transformers` an expression
    of Python. Empty if it cannot."""


@dataclass(frozen=True, kw_only=True)
class HubCommit(Resource):
    """A commit that a push made on the hub, or the newest one of the branch if that had the same content already."""

    repo_id: str
    """The repository: `namespace/name`."""
    revision: str
    """The branch."""
    commit_url: str
    """URL of the commit's page."""
    commit_oid: str
    """Id of the commit, 40 hexadecimal digits. It can be used as a revision to load exactly this content."""


@dataclass(frozen=True, kw_only=True)
class ExportResult(Resource):
    """Result of the export."""

    package_path: str
    """Path of finetuneflow_export.zip in the artifact store, relative to the tenant's folder."""
    package_sha256: str
    """SHA-256 of the zip, in hexadecimal."""
    package_size_bytes: int
    """Size of the zip in bytes."""
    forms: tuple[ExportedForm, ...]
    """The forms in the package, in the order of their formats. Empty if an earlier version made it."""
    servable_by: tuple[ServableBy, ...]
    """Programs that can serve the package, or the reasons why one cannot: at least one entry for each of `peft`,
    `transformers`, `vllm`, `llama.cpp` and `ollama`, in this order. Empty if an earlier version made it."""
    signing_key_fingerprint: str
    """Fingerprint of the operator's key that certifies the signature in manifest.sig: the SHA-256 of the public key in
    DER, in hexadecimal. Empty: the package is not signed, because the exporter has no signing key."""
    hub: HubCommit | None
    """The commit on the hub. None if it was not pushed."""
