"""Decides what can serve an exported package: the rules of each reader for each form, and the command that serves it.

The rules are read in the readers' sources. vLLM's are in vllm/lora/peft_helper.py, lora_model.py and config/lora.py
(0.33); a DoRA adapter passes none of them, and the engine stops.
"""

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from engine.config.job import ExportFormat, Lora
from engine.inl_sizes import MODEL_TYPE
from engine.model_names import is_on_hub, model_reference

READERS: Final = ("peft", "transformers", "vllm", "llama.cpp", "ollama")
OF_PYTHON: Final = ("peft", "transformers")
"""Readers that every package has, and that serve nobody over a network by themselves."""
MERGED_FOLDER: Final = "merged"
"""Folder of the merged form in a package."""
GGUF_FOLDER: Final = "gguf"
"""Folder of the GGUF files in a package."""
UNNAMED_GGUF: Final = "gguf/NAME.gguf"
"""Path of a GGUF file before there is one."""
GGUF_ADAPTER_FOLDER: Final = "gguf_adapter"
"""Folder of the GGUF files with the adapter alone in a package."""
UNNAMED_GGUF_ADAPTER: Final = "gguf_adapter/NAME-lora.gguf"
"""Path of such a file before there is one."""
BASE_GGUF: Final = "BASE.gguf"
"""Stands for the GGUF file of the base model, which no package has."""
MODELFILE: Final = "Modelfile"
"""Name of the file for Ollama in it."""
MODEL_NAME: Final = "tuned"
"""Name under which vLLM serves an adapter, and Ollama a model whose job has no name that Ollama accepts."""
_MAX_NAME: Final = 40
VLLM_RANKS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's --max-lora-rank."""
_VLLM_ADAPTERS: Final = frozenset(
    {
        "apertus", "arcee", "cohere", "cohere2", "cwm", "ernie4_5", "exaone", "exaone4", "gemma", "gemma2", "gemma3",
        "gemma3_text", "glm", "glm4", "gpt_bigcode", "gpt_neox", "granite", "granitemoe", "hunyuan_v1_dense",
        "internlm2", "llama", "minicpm", "ministral3", "mistral", "mixtral", "nemotron", "olmo", "olmo2", "olmo3",
        "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "starcoder2",
    }
)  # fmt: skip
"""Types of models that vLLM takes adapters for: the class of their architecture in model_executor/models/registry.py is
a SupportsLoRA in 0.32.0. It serves more without, such as gpt2, falcon and stablelm. Most mixtures of experts and types
with linear attention are left out though theirs is one: their layers may have other names there than in an adapter."""

_NO_INL: Final = "it has no INL models"
_AFTER_REGISTERING: Final = "after register_inl(), as README.md shows"


@dataclass(frozen=True)
class Contents:
    """The properties of a package that decide what can serve it."""

    formats: Sequence[ExportFormat]
    adapter: Mapping[str, Any] | None
    """adapter_config.json, or `adapter_settings`; None for method full."""
    model_type: str
    """As in config.json of the base model; empty if it has none."""
    base: str
    """Public id of the base model."""
    revision: str = ""
    needs_quantized_base: bool = False
    """True for LoftQ, whose adapter contains what the quantization of its base model has lost."""
    has_chat_template: bool = True
    """True if rows were conversations."""
    gguf_file: str = UNNAMED_GGUF
    """Path of the first GGUF file in the package."""
    gguf_adapter_file: str = UNNAMED_GGUF_ADAPTER
    """Path of the first GGUF file with the adapter alone."""
    of_base: bool = False
    """True for a base model, which no job has trained."""
    model_name: str = MODEL_NAME
    """Name for Ollama, see `ollama_name`."""


@dataclass(frozen=True)
class Served:
    """Answer of a reader for a form of a package: a command, or a refusal."""

    reader: str
    format: ExportFormat | None
    """None: the package has no form that it reads."""
    refusal: str = ""
    """Why it cannot; empty if it can."""
    command: str = ""
    """Shell command or expression of Python that serves it."""


def servable_by(contents: Contents) -> list[Served]:
    """Returns for each reader what it can do with each form that it reads, in the order of READERS."""
    found = []
    for reader in READERS:
        rules = _RULES[reader]
        own = [_served(reader, format_, rules[format_], contents) for format_ in contents.formats if format_ in rules]
        found += own or [Served(reader, None, _WITHOUT_FORM[reader])]
    return found


def ollama_name(display_name: str) -> str:
    """Returns the name of a model for Ollama: at most 40 characters of a-z, 0-9 and `-`."""
    return re.sub(r"[^a-z0-9]+", "-", display_name.lower())[:_MAX_NAME].strip("-") or MODEL_NAME


def export_of_base(base: str, revision: str) -> str:
    """Returns the command that makes a GGUF file of a base model, which no publisher need have of its revision."""
    return f"ftf export {shlex.quote(model_reference(base, revision))} --format gguf"


def adapter_settings(lora: Lora, rank: int) -> dict[str, Any]:
    """Returns what adapter_config.json of a job will say, as far as readers differ about it."""
    return {
        "r": rank,
        "use_dora": lora.use_dora,
        "use_rslora": lora.use_rslora,
        "bias": lora.bias,
        "modules_to_save": list(lora.modules_to_save) or None,
        "trainable_token_indices": list(lora.trainable_tokens) or None,
    }


Rule = Callable[[Contents], tuple[str, str]]
"""Returns why the reader cannot serve the form, or the command."""


def _served(reader: str, format_: ExportFormat, rule: Rule, contents: Contents) -> Served:
    refusal, command = rule(contents)
    return Served(reader, format_, refusal, "" if refusal else command)


def _peft(contents: Contents) -> tuple[str, str]:
    if contents.adapter is None:
        return "method full trained every weight, so the package has no adapter", ""
    if contents.needs_quantized_base:
        return "", 'PeftModel.from_pretrained(base, ".")  # base: quantized as README.md shows'
    if contents.model_type == MODEL_TYPE:
        return "", f'PeftModel.from_pretrained(base, ".")  # base: {_AFTER_REGISTERING}'
    if is_on_hub(contents.base):
        return "", 'AutoPeftModelForCausalLM.from_pretrained(".")'
    return "", f'PeftModel.from_pretrained(base, ".")  # base: the folder that `ftf models path {contents.base}` prints'


def _transformers_adapter(contents: Contents) -> tuple[str, str]:
    if contents.adapter is None:
        return "", _loaded(contents, 'AutoModelForCausalLM.from_pretrained(".")')
    return "the top folder has an adapter, which transformers loads with peft only", ""


def _transformers_merged(contents: Contents) -> tuple[str, str]:
    return "", _loaded(contents, f'AutoModelForCausalLM.from_pretrained("{MERGED_FOLDER}", dtype="auto")')


def _loaded(contents: Contents, code: str) -> str:
    return f"{code}  # {_AFTER_REGISTERING}" if contents.model_type == MODEL_TYPE else code


def _vllm_adapter(contents: Contents) -> tuple[str, str]:
    adapter = contents.adapter
    if contents.model_type == MODEL_TYPE:
        return _NO_INL, ""
    if adapter is None:
        return "", "vllm serve ."
    if refusal := vllm_refusal(contents, adapter):
        return refusal, ""
    rank = next(rank for rank in VLLM_RANKS if rank >= adapter["r"])
    base = shlex.quote(contents.base) if is_on_hub(contents.base) else f'"$(ftf models path {contents.base})"'
    options = [f"--revision {contents.revision}"] if is_on_hub(contents.base) and contents.revision else []
    options += [f"--enable-lora --max-lora-rank {rank} --lora-modules {MODEL_NAME}=. --generation-config ."]
    options += ["--chat-template chat_template.jinja"] if contents.has_chat_template else []
    return "", " ".join(["vllm serve", base, *options])


def vllm_refusal(contents: Contents, adapter: Mapping[str, Any]) -> str:
    """Returns why vLLM does not serve an adapter; empty if it does."""
    saved = [name for name in adapter.get("modules_to_save") or () if name not in ("classifier", "score")]
    if adapter.get("use_dora"):
        return "it has no DoRA; its engine stops at such an adapter"
    if saved:
        return f"it refuses modules_to_save ({', '.join(saved)})"
    if adapter.get("bias") not in (None, "none"):
        return f"it refuses trained biases (bias = {adapter['bias']})"
    if adapter.get("trainable_token_indices"):
        return "it does not read trainable_tokens"
    if adapter["r"] > VLLM_RANKS[-1]:
        return f"its largest rank is {VLLM_RANKS[-1]}; the adapter has {adapter['r']}"
    if contents.needs_quantized_base:
        return "the adapter of LoftQ belongs to quantized weights that vLLM does not make"
    if contents.model_type and contents.model_type not in _VLLM_ADAPTERS:
        return f"it is not known to take adapters for models of type {contents.model_type}"
    return ""


def _vllm_merged(contents: Contents) -> tuple[str, str]:
    if contents.model_type == MODEL_TYPE:
        return _NO_INL, ""
    return "", f"vllm serve ./{MERGED_FOLDER}"


def _llama_cpp(contents: Contents) -> tuple[str, str]:
    return "", f"llama-server -m {shlex.quote(contents.gguf_file)}"


def _ollama(contents: Contents) -> tuple[str, str]:
    if not contents.has_chat_template:
        why = "the base model has no chat template" if contents.of_base else "no rows were conversations"
        return f"the package has no Modelfile, because {why}", ""
    name = contents.model_name
    return "", f"ollama create {name} -f {GGUF_FOLDER}/{MODELFILE} && ollama run {name}"


def _llama_cpp_adapter(contents: Contents) -> tuple[str, str]:
    if contents.adapter is None:
        return "method full trained every weight, so the package has no adapter", ""
    command = f"llama-server -m {BASE_GGUF} --lora {shlex.quote(contents.gguf_adapter_file)}"
    return "", f"{command}{_from_base(contents)}"


def _ollama_adapter(contents: Contents) -> tuple[str, str]:
    if not contents.has_chat_template:
        return "the package has no Modelfile, because no rows were conversations", ""
    name = f"{contents.model_name}-adapter"
    # Beside the package: with another file in it, `ftf verify` would refuse it.
    folder = f"../{name}"
    steps = [
        f"mkdir -p {folder}",
        f"cp {GGUF_ADAPTER_FOLDER}/* {folder}/",
        f"cp {BASE_GGUF} {folder}/{BASE_GGUF}",
        f"ollama create {name} -f {folder}/{MODELFILE}",
        f"ollama run {name}",
    ]
    return "", f"{' && '.join(steps)}{_from_base(contents)}"


def _from_base(contents: Contents) -> str:
    """Returns the comment about the file that a command needs and the package does not have."""
    return f"  # {BASE_GGUF}: {export_of_base(contents.base, contents.revision)}"


# A form that another reader needs is a rule here.
_RULES: Final[Mapping[str, Mapping[ExportFormat, Rule]]] = {
    "peft": {"adapter": _peft},
    "transformers": {"adapter": _transformers_adapter, "merged": _transformers_merged},
    "vllm": {"adapter": _vllm_adapter, "merged": _vllm_merged},
    "llama.cpp": {"gguf": _llama_cpp, "gguf_adapter": _llama_cpp_adapter},
    "ollama": {"gguf": _ollama, "gguf_adapter": _ollama_adapter},
}
_WITHOUT_FORM: Final = {
    "peft": "the package has no adapter",
    "transformers": "the package has no model in its format",
    "vllm": "the package has no model in its format",
    "llama.cpp": "the package has no GGUF file",
    "ollama": "the package has no GGUF file with a Modelfile",
}
