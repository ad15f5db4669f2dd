"""Rules for several fields of a spec: pairs that exclude each other, and NUL characters in any text.

They apply to the spec before its recipe is merged in: `recipes.merge` resolves conflicts with a recipe's values.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from engine.errors import Violation
from engine.random_reference import RandomReference

CONVERTED_TYPES: Final = ("f32", "f16", "bf16", "q8_0")
"""Types of GGUF files that llama.cpp's converters make; its library makes the others."""
NOT_IN_GGUF: Final = {
    "use_dora": "llama.cpp has no DoRA",
    "modules_to_save": "llama.cpp's adapters have no whole modules",
    "trainable_tokens": "llama.cpp's adapters have no embeddings of tokens",
    "bias": "llama.cpp's adapters have no biases",
    "init_lora_weights": "the adapter of LoftQ belongs to quantized weights that llama.cpp does not make",
}
"""Why a GGUF file with the adapter alone cannot have what `beyond_plain_lora` names."""

DEEPSPEED: Final = ("zero2", "zero2_offload")
"""Values of resources.parallelism for which DeepSpeed divides gradients and the optimizer's states."""
DIVISIBLE_OPTIMIZERS: Final = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimizers that treat every weight alone, so that their states can be divided anywhere."""


def exclusive_fields(spec: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each pair of fields in `spec` that exclude each other."""
    given = spec.get("hyperparameters")
    given = given if isinstance(given, Mapping) else {}
    found = []
    if given.get("warmup_ratio") is not None and given.get("warmup_steps") is not None:
        description = f"cannot be combined with warmup_steps = {given['warmup_steps']!r}; set one of the two."
        found.append(Violation("spec.hyperparameters.warmup_ratio", description))
    evaluation = section if isinstance(section := spec.get("evaluation"), Mapping) else {}
    answered = [name for name in ("prompt_steps", "prompt_epochs") if evaluation.get(name) is not None]
    if len(answered) == 2:
        found.append(
            Violation("spec.evaluation.prompt_epochs", "cannot be combined with prompt_steps; set one of the two.")
        )
    if answered and not evaluation.get("prompts"):
        found.append(Violation(f"spec.evaluation.{answered[0]}", "needs evaluation.prompts, which are answered then."))
    if spec.get("phases") and spec.get("training_data"):
        description = "cannot be combined with training_data; move those rows into a phase, or remove one of the two."
        found.append(Violation("spec.phases", description))
    if spec.get("phases") and given.get("max_steps") is not None:
        description = "cannot be combined with phases, whose num_epochs set the length of each; remove it."
        found.append(Violation("spec.hyperparameters.max_steps", description))
    return found


def schedule_conflicts(values: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for a floor of the learning rate that its schedule does not have; `values` include the
    recipe's."""
    given = section if isinstance(section := values.get("hyperparameters"), Mapping) else {}
    kind = given.get("lr_scheduler_type", "cosine")
    if not given.get("min_learning_rate_ratio") or kind == "cosine":
        return []
    problem = f"is for lr_scheduler_type = cosine; remove it, or the schedule {str(kind)[:80]!r}."
    return [Violation("spec.hyperparameters.min_learning_rate_ratio", problem)]


def adapter_conflicts(values: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each setting of the adapters that another one excludes; `values` include the recipe's."""
    lora, quantization = (
        {**section} if isinstance(section := values.get(name), Mapping) else {} for name in ("lora", "quantization")
    )
    method, init = values.get("method") or "auto", str(lora.get("init_lora_weights") or "default")
    found = []

    def refuse(field: str, description: str) -> None:
        found.append(Violation(f"spec.lora.{field}", description))

    if init.startswith(("pissa", "olora")):
        if method not in ("auto", "lora"):
            refuse("init_lora_weights", f"{init} is for method lora, not {method}; use loftq, or set method to lora.")
        if lora.get("use_dora"):
            refuse("init_lora_weights", f"{init} cannot be combined with use_dora; remove one of the two.")
    if init == "loftq":
        if method not in ("auto", "qlora"):
            refuse("init_lora_weights", f"loftq compensates for quantization; set method to qlora instead of {method}.")
        if quantization.get("bits") not in (None, 4) or quantization.get("bnb_4bit_quant_type") not in (None, "nf4"):
            refuse("init_lora_weights", "loftq needs quantization.bits = 4 and bnb_4bit_quant_type = nf4.")
    if lora.get("use_dora") and quantization.get("bits") == 8 and method in ("auto", "qlora"):
        # peft loses the scales of the weights when it computes the norms.
        refuse("use_dora", "cannot be combined with 8-bit quantization; set quantization.bits to 4.")
    if lora.get("target_modules_pattern") is not None:
        for other in ("target_modules", "layers_to_transform"):
            if lora.get(other):
                refuse("target_modules_pattern", f"cannot be combined with {other}; remove one of the two.")
    if values.get("start_from") and method == "full":
        description = "full trains all weights, but start_from names an adapter; set it to lora or qlora."
        found.append(Violation("spec.method", description))
    if values.get("start_mode") == "new":
        for name in beyond_plain_lora(lora):
            refuse(name, "cannot be combined with start_mode = new, which joins two plain adapters; remove it.")
        if not values.get("start_from"):
            found.append(Violation("spec.start_mode", "new needs start_from, the adapter to train another one on."))
    if lora.get("trainable_tokens") and "embed_tokens" in (lora.get("modules_to_save") or ()):
        refuse("trainable_tokens", "cannot be combined with embed_tokens in modules_to_save, which trains every token.")
    return found


def export_conflicts(values: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each setting of a form without that form, for what is named twice, and for base weights
    that the adapter does not fit; `values` include the recipe's."""
    lora, export = (
        {**section} if isinstance(section := values.get(name), Mapping) else {} for name in ("lora", "export")
    )
    formats, found = export.get("formats"), []
    listed = formats if isinstance(formats, list) else []
    merged, gguf, gguf_adapter = "merged" in listed, "gguf" in listed, "gguf_adapter" in listed
    if export.get("dtype") and not merged:
        found.append(Violation("spec.export.dtype", "needs merged in formats, whose weights it is about."))
    types = export.get("gguf_types")
    for name, entries in (("formats", listed), ("gguf_types", types if isinstance(types, list) else [])):
        if repeated := [each for each in entries if entries.count(each) > 1]:
            found.append(Violation(f"spec.export.{name}", f"names {repeated[0]} twice; remove one of them."))
    if types and not (gguf or gguf_adapter):
        description = "needs gguf or gguf_adapter in formats, whose files it is about."
        found.append(Violation("spec.export.gguf_types", description))
    if gguf_adapter:
        found += _gguf_adapter_conflicts(values, lora, types if isinstance(types, list) else [], gguf=gguf)
    if export.get("merge_base") == "original":
        if not (merged or gguf):
            found.append(
                Violation("spec.export.merge_base", "needs merged or gguf in formats, whose weights it is about.")
            )
        elif lora.get("init_lora_weights") == "loftq" and values.get("method") in (None, "auto", "qlora"):
            description = "original cannot be combined with loftq, whose adapter contains what quantization has lost."
            found.append(Violation("spec.export.merge_base", description))
    return found


def _gguf_adapter_conflicts(
    values: Mapping[str, Any], lora: Mapping[str, Any], types: list[Any], *, gguf: bool
) -> list[Violation]:
    """Returns a violation for each setting that a GGUF file with the adapter alone cannot express."""
    found, base_model = [], values.get("base_model")
    named = RandomReference.parse(base_model) if isinstance(base_model, str) else None
    instead = "merged" if named and named.is_inl else "gguf"
    if values.get("method") == "full":
        description = f"gguf_adapter needs an adapter, and method full trains none; use {instead}."
        found.append(Violation("spec.export.formats", description))
    for name in () if values.get("method") == "full" else beyond_plain_lora(lora):
        problem = f"gguf_adapter cannot be combined with lora.{name}: {NOT_IN_GGUF[name]}"
        description = f"{problem}. Use {instead} or remove it."
        found.append(Violation("spec.export.formats", description))
    made = [type_ for type_ in types if type_ in CONVERTED_TYPES]
    if types and (not made if gguf else len(made) < len(types)):
        listed = ", ".join(CONVERTED_TYPES)
        description = f"needs one of {listed} for gguf_adapter."
        if not gguf:
            description = f"must be among {listed} for gguf_adapter, unless gguf is in formats too."
        found.append(Violation("spec.export.gguf_types", description))
    return found


def push_conflicts(values: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for a push to the hub without the secret that it needs; `values` include the recipe's."""
    export, secrets = values.get("export"), values.get("secrets")
    pushed = isinstance(export, Mapping) and export.get("hub") is not None
    if not pushed or (isinstance(secrets, Mapping) and secrets.get("hub_write_token")):
        return []
    description = (
        "is required with export.hub: the name of a secret with a token that may write to the repository. Store one "
        "with `ftf secrets set NAME`."
    )
    return [Violation("spec.secrets.hub_write_token", description)]


def resource_conflicts(values: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each setting of devices and processes that another one excludes; `values` include the
    recipe's."""
    resources = section if isinstance(section := values.get("resources"), Mapping) else {}
    gpus, world_size = resources.get("gpus"), resources.get("world_size")
    found = []
    if gpus and world_size is not None and world_size != gpus:
        description = (
            f"{world_size} given, with gpus = {gpus}: each process has a GPU of its own; remove one of the two."
        )
        found.append(Violation("spec.resources.world_size", description))
    parallelism = resources.get("parallelism") or "auto"
    if parallelism not in ("auto", "ddp") and (world_size or gpus or 1) == 1:
        description = (
            f"{parallelism} given; it needs several processes: set gpus or world_size to 2 or more, or remove it."
        )
        found.append(Violation("spec.resources.parallelism", description))
    if parallelism in (*DEEPSPEED, "fsdp"):
        found += _division_conflicts(values, str(parallelism))
    return found


def _division_conflicts(values: Mapping[str, Any], parallelism: str) -> list[Violation]:
    """Returns a violation for each setting that a training whose weights or optimizer's states are divided does not do
    as it does on one device."""
    hyper = section if isinstance(section := values.get("hyperparameters"), Mapping) else {}
    optimizer = hyper.get("optim") or "auto"
    found = []
    if optimizer not in ("auto", *DIVISIBLE_OPTIMIZERS):
        # adafactor reduces the rows and columns of matrices; bitsandbytes quantizes states by blocks of a tensor.
        shares = "each weight by rows" if parallelism == "fsdp" else "the weights as one row of numbers"
        description = (
            f"{optimizer} cannot be combined with parallelism = {parallelism}, which divides {shares}; set one of "
            f"{', '.join(DIVISIBLE_OPTIMIZERS)}, or omit it."
        )
        found.append(Violation("spec.hyperparameters.optim", description))
    if hyper.get("precision") == "fp16" and parallelism in DEEPSPEED:
        # DeepSpeed computes the norm of gradients that autocast's scaler has not divided yet, and clips by it.
        description = (
            f"fp16 cannot be combined with parallelism = {parallelism}: DeepSpeed would clip gradients by a norm that "
            "includes the loss scale. Use bf16 or fp32, or omit it."
        )
        found.append(Violation("spec.hyperparameters.precision", description))
    return found


def streaming_conflicts(values: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each setting that a streamed corpus excludes, and for a buffer without streaming;
    `values` include the recipe's."""
    hyper = section if isinstance(section := values.get("hyperparameters"), Mapping) else {}
    path = "spec.hyperparameters"
    if not hyper.get("streaming"):
        if hyper.get("shuffle_buffer_tokens") is None:
            return []
        return [Violation(f"{path}.shuffle_buffer_tokens", "needs streaming, whose sequences it shuffles.")]
    found = []
    if values.get("phases"):
        found.append(
            Violation("spec.phases", "cannot be combined with streaming, which reads one mixture; remove one.")
        )
    if hyper.get("packing") is False:
        description = "cannot be false with streaming, which packs texts to sequences of max_length; remove it."
        found.append(Violation(f"{path}.packing", description))
    if hyper.get("group_by_length"):
        description = "cannot be combined with streaming, whose sequences all have max_length tokens; remove it."
        found.append(Violation(f"{path}.group_by_length", description))
    if hyper.get("truncation") == "drop":
        description = "drop cannot be combined with streaming, which cuts no text off; remove it."
        found.append(Violation(f"{path}.truncation", description))
    return found


def beyond_plain_lora(lora: Mapping[str, Any]) -> list[str]:
    """Returns the settings that make an adapter more than the two matrices of each layer, which is all that can be
    joined with another adapter."""
    found = [name for name in ("use_dora", "modules_to_save", "trainable_tokens") if lora.get(name)]
    found += ["bias"] * (lora.get("bias") not in (None, "", "none"))
    return found + ["init_lora_weights"] * (lora.get("init_lora_weights") == "loftq")


def mappings_with_template(spec: Mapping[str, Any]) -> list[Violation]:
    """Returns a violation for each data source with both a mapping and a template."""
    found = []
    phases = spec.get("phases")
    listed = {name: spec.get(name) for name in ("training_data", "evaluation_data")}
    for number, phase in enumerate(phases if isinstance(phases, list) else ()):
        if isinstance(phase, Mapping):
            listed[f"phases[{number}].training_data"] = phase.get("training_data")
    for name, sources in listed.items():
        for index, source in enumerate(sources if isinstance(sources, list) else ()):
            if isinstance(source, Mapping) and source.get("mapping") and source.get("template") is not None:
                description = "cannot be combined with template, which names the file's columns itself; remove one."
                found.append(Violation(f"spec.{name}[{index}].mapping", description))
    return found


def paths_with_nul(value: object, path: str) -> Iterator[str]:
    """Yields the paths of texts with a NUL character, which neither databases nor tokenizers store unchanged."""
    if isinstance(value, str):
        if "\0" in value:
            yield path
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from paths_with_nul(key, path)
            yield from paths_with_nul(inner, f"{path}.{key}")
    elif isinstance(value, Sequence):
        for index, inner in enumerate(value):
            yield from paths_with_nul(inner, f"{path}[{index}]")
