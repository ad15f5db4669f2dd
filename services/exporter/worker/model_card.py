"""`README.md` of the package: a model card with the metadata that a model hub reads."""

import math
from collections.abc import Sequence
from typing import Final

from huggingface_hub import EvalResult, ModelCardData

from engine.config.hub_reference import HubReference, is_hub_reference
from engine.evaluation.verdicts import is_worse
from engine.inl_sizes import ARCHITECTURE as INL_ARCHITECTURE
from engine.model_names import is_on_hub
from engine.random_reference import RandomReference, has_random_weights
from engine.serving import Served
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.forms import Form, describe
from services.exporter.worker.markdown import escape
from services.exporter.worker.report import decision, method_title, signature
from services.exporter.worker.row_forms import RowForms
from services.exporter.worker.serving import serving_table


def model_card(child_input: ExportInput, forms: Sequence[Form] = (), served: Sequence[Served] = ()) -> str:
    """The card in Markdown, YAML front matter included. `forms` are those of the package; none: the adapter alone.
    `served` says what can serve it."""
    model = child_input.model
    merged = next((form for form in forms if form.format == "merged"), None)
    files = [form for form in forms if form.gguf]
    weights = not forms or any(form.format == "adapter" for form in forms)
    full = child_input.config.method == "full" or not weights
    adapters = bool(forms) and all(form.format == "gguf_adapter" for form in forms)
    data = ModelCardData(
        # The hub refuses the name of a model that is none of its own.
        base_model=model.id if is_on_hub(model.id) else None,
        base_model_relation=("finetune" if full and not adapters else "adapter") if is_on_hub(model.id) else None,
        library_name=_library(full=full, gguf=bool(files) and not weights and merged is None),
        pipeline_tag=_TASK,
        license=_license(child_input),
        tags=sorted({"finetuneflow", "sft", child_input.config.method}),
        datasets=_hub_datasets(child_input) or None,
        model_name=child_input.config.display_name,
        eval_results=_eval_results(child_input) or None,
    )
    evaluation = child_input.evaluation
    outcome = "Its loss was not measured on held-out rows."
    if child_input.step is not None:
        outcome = f"It was not evaluated: the job's evaluation is about step {child_input.training.best_step:,}."
    if evaluation.HasField("tuned_loss"):
        before = f", base model {evaluation.base_loss:.4f}" if evaluation.HasField("base_loss") else ""
        outcome = (
            f"Loss on {evaluation.num_examples:,} held-out rows, {_weights(child_input)}: "
            f"{evaluation.tuned_loss:.4f} nats per token{before}."
        )
        if evaluation.HasField("base_loss") and is_worse(evaluation.tuned_loss, evaluation.base_loss):
            outcome += " **It is worse than its base model: do not serve it.**"
    if verdict := decision(evaluation):
        outcome += f" Decision of the evaluation's gate: **{verdict}**."
    if evaluation.shown_regression:
        outcome += f" **Regression shown:** {escape(evaluation.shown_regression, 500)}"
    lineage = child_input.job.lineage_text()
    built = f"It is {lineage}. " if lineage else ""
    text = f"""\
{method_title(child_input.config)} fine-tune of `{model.id}` (revision `{model.revision}`), made by FineTuneFlow
in job `{child_input.job.id}`, step {child_input.packed_step:,}. {built}{outcome}
`report.md` describes the training, `metrics.json` and `training_config.json` contain every figure and setting,
`manifest.json` the SHA-256 of every file; `generation_config.json` names the tokens that end an answer.
Signature: {signature(child_input)} {_licence(child_input)}"""
    return _card(child_input, data, text, forms, served, weights=weights)


def base_model_card(child_input: ExportInput, forms: Sequence[Form], served: Sequence[Served]) -> str:
    """The card of a base model, which no job has trained."""
    model = child_input.model
    gguf = all(form.gguf for form in forms)
    known = is_on_hub(model.id)
    data = ModelCardData(
        base_model=model.id if known else None,
        base_model_relation="quantized" if known and gguf else None,
        library_name=_library(full=True, gguf=gguf),
        pipeline_tag=_TASK,
        license=_license(child_input),
        tags=["finetuneflow"],
        model_name=child_input.config.display_name,
    )
    text = f"""\
The base model `{model.id}` (revision `{model.revision}`), exported by FineTuneFlow in export
`{child_input.job.id}`. It was not trained: the weights are those of that model, in the forms below.
`report.md` names the model by the SHA-256 of its weights, `manifest.json` has the SHA-256 of every file.
Signature: {signature(child_input)} {_licence(child_input)}"""
    return _card(child_input, data, text, forms, served, weights=False)


def _licence(child_input: ExportInput) -> str:
    """Returns whose licence the model has, as a sentence."""
    if named := RandomReference.parse(child_input.model.id):
        random = "The weights are random numbers" if child_input.of_base else "The base model had random weights"
        random += "" if named.is_inl else f" in the shape of `{named.shape}`"
        tokenizer = f"the tokenizer is that of `{named.tokenizer}`, under its licence"
        if named.corpus_sha256:
            tokenizer = "the tokenizer was trained on the rows of the job"
        return f"{random}, so the licence is the owner's to choose; {tokenizer}."
    return f"The licence is the {'' if child_input.of_base else 'base '}model's."


def _license(child_input: ExportInput) -> str | None:
    """Returns the licence for the metadata; None, which leaves it out, for a model whose owner is to choose one."""
    model = child_input.model
    return model.license.lower() or (None if has_random_weights(model.id) else "unknown")


def _card(
    child_input: ExportInput,
    data: ModelCardData,
    text: str,
    forms: Sequence[Form],
    served: Sequence[Served],
    *,
    weights: bool,
) -> str:
    """Returns metadata and text with what loads and serves the forms. `weights`: the top folder has weights."""
    merged = next((form for form in forms if form.format == "merged"), None)
    files = [form for form in forms if form.gguf]
    loading = [_loading(child_input, ".")] if weights else []
    if merged is not None:
        loading.append(_loading_merged(child_input, merged, alone=not weights))
    if files:
        loading.append(_loading_gguf(files, alone=not loading))
    joined = "\n\n".join(loading)
    serving = f"\n## What serves it\n\n{serving_table(served)}\n" if served else ""
    return f"""---
{data.to_yaml()}
---

# {escape(child_input.config.display_name)}

{text}

## Loading it

{joined}
{serving}"""


def _hub_datasets(child_input: ExportInput) -> list[str]:
    """Returns the ids of the datasets of the hub among those of the job; uploaded ones have no page there."""
    named = [dataset.id for dataset in child_input.job.datasets if is_hub_reference(dataset.id)]
    return list(dict.fromkeys(HubReference.parse(reference).id for reference in named))


def _eval_results(child_input: ExportInput) -> list[EvalResult]:
    """Returns the figures of the tuned model on held-out rows, as the hub shows them. What is not a number is left out:
    the hub refuses it."""
    evaluation, names = child_input.evaluation, _hub_datasets(child_input)
    found = {metric.name: metric.tuned for metric in evaluation.metrics if metric.HasField("tuned")}
    if evaluation.HasField("tuned_loss"):
        found.setdefault("loss", evaluation.tuned_loss)
    if evaluation.HasField("tuned_perplexity"):
        found.setdefault("perplexity", evaluation.tuned_perplexity)
    return [
        EvalResult(
            task_type=_TASK,
            task_name="Text generation",
            dataset_type=names[0] if len(names) == 1 else "held-out",
            dataset_name="Held-out rows of the training's data",
            metric_type=name,
            metric_name=f"{name}, {_weights(child_input)}" if name in _LOSSES else name,
            metric_value=value,
        )
        for name, value in found.items()
        if math.isfinite(value)
    ]


def _weights(child_input: ExportInput) -> str:
    """Returns on which weights the models were evaluated."""
    if _needs_quantized_base(child_input):
        return "on the quantized weights"
    return "fp32, on the unquantized weights" if child_input.config.method == "qlora" else "fp32"


def _library(*, full: bool, gguf: bool) -> str:
    if gguf:
        return "llama.cpp"
    return "transformers" if full else "peft"


def _loading_merged(child_input: ExportInput, form: Form, *, alone: bool) -> str:
    """Returns how transformers loads the merged model."""
    heading = "" if alone else "## Loading the merged model\n\n"
    return f"""{heading}{describe(form)}

{_loading(child_input, form.path)}"""


def _loading_gguf(forms: Sequence[Form], *, alone: bool) -> str:
    """Returns what each GGUF file is."""
    heading = "" if alone else "## Loading the GGUF files\n\n"
    described = "\n".join(f"- {describe(form)}" for form in forms)
    return f"{heading}{described}"


def _loading(child_input: ExportInput, folder: str) -> str:
    """Returns code that loads the weights in the folder and asks the model; `.` has those of the training."""
    full = child_input.config.method == "full" or folder != "."
    imports = [] if full else ["from peft import PeftModel"]
    quantized = ", BitsAndBytesConfig" if not full and _needs_quantized_base(child_input) else ""
    imports.append(f"from transformers import AutoModelForCausalLM, AutoTokenizer{quantized}")
    if child_input.model.architecture == INL_ARCHITECTURE:
        imports.insert(0, "from engine.inl.auto_classes import register_inl  # of finetuneflow-server[trainer]")
        imports += ["", "register_inl()"]
    lines = [*imports, "", *_model(child_input, folder), ""]
    forms = RowForms.of(child_input)
    if forms.chat:
        lines += _chat(child_input)
    if forms.plain:
        lines += ["", "# Rows of plain text have no template."] if forms.chat else []
        lines += _plain(child_input, asked=not forms.chat)
    code = "\n".join(["```python", *lines, "```"])
    if not full and child_input.config.method == "qlora" and not _needs_quantized_base(child_input):
        code += f"\n\n{_quantized(child_input)}"
    return code


def _quantized(child_input: ExportInput) -> str:
    """Returns how the base model is loaded as it was in the training."""
    base = "base"
    if is_on_hub(child_input.model.id):
        base = f'"{child_input.model.id}", revision="{child_input.model.revision}"'
    return f"""With the base model quantized as in the training, in less memory, it is loaded so instead:

```python
from transformers import BitsAndBytesConfig

config = BitsAndBytesConfig({_bitsandbytes_settings(child_input)})
model = AutoModelForCausalLM.from_pretrained({base}, quantization_config=config)
{_UNPACKED}
model = PeftModel.from_pretrained(model, ".")
```"""


def _bitsandbytes_settings(child_input: ExportInput) -> str:
    """Returns the arguments of BitsAndBytesConfig with the job's values."""
    quantization = child_input.config.quantization
    if quantization.bits == 8:
        return "load_in_8bit=True"
    compute = quantization.bnb_4bit_compute_dtype
    if compute == "auto":
        compute = child_input.config.hyperparameters.precision
    names = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    computed = f', bnb_4bit_compute_dtype="{names[compute]}"' if compute in names else ""
    return (
        f'load_in_4bit=True, bnb_4bit_quant_type="{quantization.bnb_4bit_quant_type}", '
        f"bnb_4bit_use_double_quant={quantization.bnb_4bit_use_double_quant}{computed}"
    )


def _model(child_input: ExportInput, folder: str) -> list[str]:
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{folder}")'
    model = child_input.model
    if folder != ".":
        return [tokenizer, f'model = AutoModelForCausalLM.from_pretrained("{folder}", dtype="auto")']
    if child_input.config.method == "full":
        return [tokenizer, 'model = AutoModelForCausalLM.from_pretrained(".")']
    adapter = 'model = PeftModel.from_pretrained(model, ".")'
    quantized, option = [], ""
    if _needs_quantized_base(child_input):
        settings = _bitsandbytes_settings(child_input)
        quantized = ["# The adapter belongs to these quantized weights.", f"config = BitsAndBytesConfig({settings})"]
        option = ", quantization_config=config"
        adapter = f"{_UNPACKED}\n{adapter}"
    if is_on_hub(model.id):
        base = f'model = AutoModelForCausalLM.from_pretrained("{model.id}", revision="{model.revision}"{option})'
        return [tokenizer, *quantized, base, adapter]
    where = f'base = "…"  # the folder that `ftf models path {model.id}` prints'
    return [where, tokenizer, *quantized, f"model = AutoModelForCausalLM.from_pretrained(base{option})", adapter]


def _needs_quantized_base(child_input: ExportInput) -> bool:
    """Returns True for LoftQ: its adapter contains what the quantisation has lost."""
    return child_input.config.method == "qlora" and child_input.config.lora.init_lora_weights == "loftq"


def _chat(child_input: ExportInput) -> list[str]:
    """Returns code that asks a question, with the system prompt of the training."""
    turns = [("user", _question(child_input, "Hello"))]
    if child_input.config.system_prompt:
        turns.insert(0, ("system", child_input.config.system_prompt))
    return [
        "messages = [",
        *(f'    {{"role": "{role}", "content": {content!r}}},' for role, content in turns),
        "]",
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ")",
        *_GENERATE,
    ]


def _plain(child_input: ExportInput, *, asked: bool) -> list[str]:
    """Returns code that continues a text."""
    text = _question(child_input, _TEXT) if asked else _TEXT
    return [f'inputs = tokenizer({text!r}, return_tensors="pt")', *_GENERATE]


def _question(child_input: ExportInput, default: str) -> str:
    """Returns the first question of the evaluation if it is short, otherwise `default`."""
    for sample in child_input.evaluation.samples[:1]:
        question = f"{sample.instruction}\n\n{sample.input}" if sample.input else sample.instruction
        if 0 < len(question) <= _SHORT:
            return question
    return default


_UNPACKED: Final = """\
for module in model.modules():
    # On some CPUs bitsandbytes packs 4-bit layers anew, which fails unless their sizes are multiples of 32.
    if hasattr(module, "support_avx512bf16_for_cpu"):
        module.support_avx512bf16_for_cpu = False"""
_TASK: Final = "text-generation"
_LOSSES: Final = ("loss", "perplexity")
_TEXT = "Once upon a time"
_SHORT = 200
"""Maximum number of characters of a question in the code."""
_GENERATE = (
    "output = model.generate(**inputs, max_new_tokens=64)[0]",
    'print(tokenizer.decode(output[inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
)
