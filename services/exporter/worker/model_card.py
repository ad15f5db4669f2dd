"""`README.md` of the package: a model card with the metadata that a model hub reads."""

from huggingface_hub import ModelCardData

from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.markdown import escape
from services.exporter.worker.report import METHODS


def model_card(spec: ExportInput) -> str:
    """The card in Markdown, YAML front matter included."""
    model = spec.model
    full = spec.config.method == "full"
    data = ModelCardData(
        base_model=model.id,
        base_model_relation="finetune" if full else "adapter",
        library_name="transformers" if full else "peft",
        pipeline_tag="text-generation",
        license=model.license.lower() or "unknown",
        tags=sorted({"finetuneflow", "sft", spec.config.method}),
    )
    evaluation = spec.evaluation
    outcome = "Its loss was not measured on held-out rows."
    if evaluation.HasField("tuned_loss"):
        before = f", base model {evaluation.base_loss:.4f}" if evaluation.HasField("base_loss") else ""
        outcome = (
            f"Loss on {evaluation.num_examples:,} held-out rows, fp32: "
            f"{evaluation.tuned_loss:.4f} nats per token{before}."
        )
    return f"""---
{data.to_yaml()}
---

# {escape(spec.config.display_name)}

{METHODS[spec.config.method]} fine-tune of `{model.id}` (revision `{model.revision}`), made by FineTuneFlow
in job `{spec.job.id}`, step {spec.training.best_step:,}. {outcome}
`report.md` tells how it was trained, `metrics.json` and `training_config.json` hold every figure and setting,
`manifest.json` the SHA-256 of every file. The licence is the base model's.

## Loading it

{_loading(spec)}
"""


def _loading(spec: ExportInput) -> str:
    model = spec.model
    if spec.config.method == "full":
        return _code(
            'tokenizer = AutoTokenizer.from_pretrained(".")', 'model = AutoModelForCausalLM.from_pretrained(".")'
        )
    hub = "/" in model.id
    base = f'"{model.id}", revision="{model.revision}"' if hub else "base"
    lines = [
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        f"model = AutoModelForCausalLM.from_pretrained({base})",
        'model = PeftModel.from_pretrained(model, ".")',
    ]
    if not hub:
        lines.insert(0, f'base = "…"  # the folder that `ftf models path {model.id}` prints')
    return _code(*lines, peft=True)


def _code(*lines: str, peft: bool = False) -> str:
    imports = ["from peft import PeftModel"] if peft else []
    imports.append("from transformers import AutoModelForCausalLM, AutoTokenizer")
    generate = [
        'messages = [{"role": "user", "content": "Hello"}]',
        'inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", '
        "return_dict=True)",
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0], skip_special_tokens=True))",
    ]
    return "\n".join(["```python", *imports, "", *lines, "", *generate, "```"])
