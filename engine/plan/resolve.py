"""Resolves every automatic setting of a job for one machine and records the reason for each choice."""

import difflib

from engine.config.advice import option, setting
from engine.config.job import JobConfig
from engine.errors import JobError, Violation
from engine.estimate.architecture import Architecture, matching
from engine.estimate.disk import Disk
from engine.estimate.machine import deciding_gpu
from engine.estimate.memory import GIB
from engine.estimate.parallelism import eligible
from engine.plan.batching import TrainingRows, resolve_batches
from engine.plan.free_memory import FreeMemory
from engine.plan.parallelism import first_way, resolve_parallelism
from engine.plan.resolved import Resolved
from engine.random_reference import RandomReference, has_random_weights
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution
from finetuneflow.v1.hardware_pb2 import Gpu, Hardware

_SHORT = 64
"""Tokens of a sequence below which shorter ones save next to nothing."""


def resolve_length(resolved: Resolved, context_length: int, *, asked: bool) -> None:
    """Limits max_length to the model's context length; adds a warning if the caller set max_length (`asked`)."""
    wanted = resolved.config.hyperparameters.max_length
    if 0 < context_length < wanted:
        resolved.choose(
            "hyperparameters.max_length", context_length, f"the model's context length; {wanted:,} exceeds it"
        )
        if asked:
            message = f"max_length = {wanted:,} exceeds the model's context length of {context_length:,} tokens."
            advice = f"Set {setting('hyperparameters.max_length', context_length)} or less."
            resolved.warn("MAX_LENGTH_CLIPPED", message, advice, "hyperparameters.max_length")


def resolve(
    resolved: Resolved,
    hardware: Hardware,
    architecture: Architecture,
    longest_row: int,
    rows: TrainingRows | None = None,
) -> None:
    """Resolves the settings that depend on the machine and the rows; `longest_row` is in tokens.

    Those that depend on the number of steps are left to `engine.plan.intervals`. `rows` is None if none was counted.

    It may add the refusals NO_GPU, PRECISION_UNAVAILABLE, ATTENTION_UNAVAILABLE, PARALLELISM_UNAVAILABLE,
    MISSING_PACKAGE, UNKNOWN_MODULE and INSUFFICIENT_MEMORY.
    """
    _start(resolved)
    gpu = _gpu(resolved, hardware)
    _check_modules(resolved, architecture)
    _precision(resolved, hardware, gpu)
    _attention(resolved, hardware, architecture, gpu)
    memory = FreeMemory(hardware, gpu, architecture, longest_row, resolved.config.world_size)
    _method(resolved, hardware, gpu, memory)
    resolve_parallelism(resolved, memory)
    _optimizer(resolved, hardware, gpu)
    resolve_batches(resolved, memory, architecture, rows)
    _check_memory(resolved, memory)
    lora = resolved.config.lora
    if not lora.target_modules and lora.target_modules_pattern is None and resolved.config.method != "full":
        reason = "adapters on all of them learn more than on attention alone, at little cost"
        resolved.resolutions.append(
            Resolution(field="lora.target_modules", value="every linear layer except the head", reason=reason)
        )


def _start(resolved: Resolved) -> None:
    """Records what the training starts from, which a gateway has looked up."""
    config = resolved.config
    if config.start_from:
        continued = "the weights of this adapter are trained further; `lora` has its settings"
        new = "this adapter stays as it is, and a new one is trained on top of it; both are saved as one"
        resolved.choose("start_from", config.start_from, continued if config.start_mode == "continue" else new)


def _gpu(resolved: Resolved, hardware: Hardware) -> Gpu | None:
    """Resolves resources.gpus and returns the GPU to train on, of several the one that decides, or None."""
    usable = list(hardware.gpus) if hardware.cuda_available else []
    asked, ranks = resolved.config.resources.gpus, resolved.config.resources.world_size
    if asked is None and len(usable) >= (ranks or 1):
        each = f", and each of {ranks} processes has one" if ranks else ""
        resolved.choose("resources.gpus", ranks or 1, f"{usable[0].name} is usable{each}")
    elif asked is None and not usable:
        resolved.choose("resources.gpus", 0, "no GPU is usable on this node")
    elif (wanted := asked or ranks or 0) > len(usable) and asked != 0:
        field = "resources.gpus" if asked else "resources.world_size"
        found = "no usable GPU" if not usable else f"only {len(usable)} usable"
        message = f"{field} = {wanted}, but this node has {found}."
        advice = f"Omit {field} to train on the devices that the node has."
        resolved.refuse("NO_GPU", field, message, advice)
    return deciding_gpu(hardware, resolved.config.world_size) if asked != 0 else None


def _check_modules(resolved: Resolved, architecture: Architecture) -> None:
    """Refuses settings of the adapters that name parts which the base model lacks."""
    lora, known = resolved.config.lora, architecture.module_names()
    violations = []
    for index, target in enumerate(lora.target_modules):
        one = lora.model_copy(update={"target_modules": [target], "target_modules_pattern": None})
        if not any(architecture.targets(one)):
            close = difflib.get_close_matches(target, known, n=1)
            hint = f"Did you mean {close[0]}?" if close else f"It has: {', '.join(known)}."
            message = f"The base model has no linear layer {target!r}. {hint}"
            violations.append(Violation(f"spec.lora.target_modules[{index}]", message))
    if lora.target_modules_pattern is not None:
        violations += _check_pattern(lora.target_modules_pattern, architecture)
    for index, block in enumerate(lora.layers_to_transform):
        if block >= architecture.layers:
            message = f"{block} given; the base model has blocks 0 to {architecture.layers - 1}."
            violations.append(Violation(f"spec.lora.layers_to_transform[{index}]", message))
    for index, name in enumerate(lora.modules_to_save):
        if not architecture.saved_tensors([name]):
            message = f"No module of the base model has a path that ends in {name!r}."
            violations.append(Violation(f"spec.lora.modules_to_save[{index}]", message))
    if violations:
        advice = "Correct the names, or omit them to adapt every linear layer except the head."
        resolved.refusals.append(JobError("UNKNOWN_MODULE", violations[0].description, advice, violations))


def _check_pattern(pattern: str, architecture: Architecture) -> list[Violation]:
    """Returns a violation if the pattern matches nothing, or a module that is no linear layer."""
    path = "spec.lora.target_modules_pattern"
    example = f"{architecture.blocks_path}.0.{architecture.linears[0].name}"
    layers = {
        f"{architecture.blocks_path}.{n}.{layer.name}"
        for n in range(architecture.layers)
        for layer in architecture.linears
    }
    if not matching(pattern, layers):
        return [
            Violation(path, f"It matches no linear layer of the base model. A layer's path is, for example, {example}.")
        ]
    modules = {name.rpartition(".")[0] for name in architecture.shapes}
    others = sorted(matching(pattern, modules - layers))
    return [Violation(path, f"It also matches {others[0]}, which is no linear layer of a block.")] if others else []


def _precision(resolved: Resolved, hardware: Hardware, gpu: Gpu | None) -> None:
    asked = resolved.config.hyperparameters.precision
    fast = [name for name in ("amx_bf16", "avx512_bf16") if name in hardware.cpu_features]
    if asked == "auto":
        if gpu is not None and not gpu.bf16 and resolved.config.resources.uses_deepspeed:
            value = "fp32"
            reason = f"{gpu.name} has no bf16, and {resolved.config.resources.parallelism} has no fp16"
        elif gpu is not None:
            value = "bf16" if gpu.bf16 else "fp16"
            reason = f"{gpu.name} has compute capability {gpu.compute_capability}; bf16 needs 8.0"
        else:
            value = "bf16" if fast else "fp32"
            reason = f"the processor has {fast[0]}" if fast else "the processor has neither avx512_bf16 nor amx_bf16"
        resolved.choose("hyperparameters.precision", value, reason)
    elif (asked == "fp16" and gpu is None) or (asked == "bf16" and not (gpu.bf16 if gpu is not None else fast)):
        where = gpu.name if gpu is not None else "A CPU" if asked == "fp16" else "This CPU"
        message = f"{where} does not support {asked}."
        advice = "Omit precision: preflight selects the fastest one that the hardware supports."
        resolved.refuse("PRECISION_UNAVAILABLE", "hyperparameters.precision", message, advice)
    if resolved.config.quantization.bnb_4bit_compute_dtype == "auto":
        value = resolved.config.hyperparameters.precision
        resolved.choose("quantization.bnb_4bit_compute_dtype", value, "the job's precision")


def _attention(resolved: Resolved, hardware: Hardware, architecture: Architecture, gpu: Gpu | None) -> None:
    path, asked = "hyperparameters.attn_implementation", resolved.config.hyperparameters.attn_implementation
    half = resolved.config.hyperparameters.precision in ("bf16", "fp16")
    installed = "flash_attn" in hardware.packages
    if asked == "auto":
        if architecture.softcap:
            resolved.choose(path, "eager", "the model caps its attention logits, which only eager attention supports")
        elif gpu is not None and installed and half:
            resolved.choose(
                path, "flash_attention_2", "the package flash_attn is installed, and the precision is 16-bit"
            )
        else:
            why = (
                "no GPU is used"
                if gpu is None
                else "the precision is fp32"
                if installed
                else "flash_attn is not installed"
            )
            resolved.choose(path, "sdpa", f"PyTorch's fused attention; {why}")
    elif asked == "flash_attention_2" and (gpu is None or not half or not installed):
        problem = (
            "a GPU" if gpu is None else "precision bf16 or fp16" if not half else "the package flash_attn on the node"
        )
        message = f"flash_attention_2 needs {problem}."
        resolved.refuse("ATTENTION_UNAVAILABLE", path, message, f"Remove {path}: preflight selects what the node has.")


def _method(resolved: Resolved, hardware: Hardware, gpu: Gpu | None, memory: FreeMemory) -> None:
    quantises = "bitsandbytes" in hardware.packages
    method = resolved.config.method
    if method == "auto":
        lora = resolved.config.model_copy(update={"method": "lora"})
        if RandomReference.parse(resolved.config.base_model):
            method, reason = "full", "random weights have learned nothing that an adapter could build on"
        elif resolved.config.lora.init_lora_weights == "loftq":
            method, reason = "qlora", "loftq compensates for quantization"
        elif resolved.config.lora.changes_base:
            method, reason = "lora", f"{resolved.config.lora.init_lora_weights} needs weights that are not quantized"
        elif gpu is None:
            method, reason = "lora", "quantized weights make a training on a CPU slower"
        elif _holds_lora(lora, memory) or not quantises:
            method, reason = "lora", f"LoRA {memory.compared(lora)}"
        else:
            method, reason = "qlora", f"LoRA does not fit: it {memory.compared(lora)}"
        resolved.choose("method", method, reason)
    if method == "qlora" and not quantises:
        message = "QLoRA needs the package bitsandbytes, which is not installed on this node."
        advice = f"Set {setting('method', 'lora')}, or ask the operator to install it."
        resolved.refuse("MISSING_PACKAGE", "method", message, advice)
    if method == "qlora" and gpu is None:
        message = "QLoRA works on a CPU, but every pass expands the 4-bit weights again; LoRA is faster."
        resolved.warn("QLORA_ON_CPU", message, f"Set {setting('method', 'lora')} unless memory is scarce.", "method")


def _holds_lora(lora: JobConfig, memory: FreeMemory) -> bool:
    """Returns True if LoRA fits, of several processes in one of the ways in which they can share it."""
    if lora.world_size == 1 or lora.resources.parallelism != "auto":
        return memory.holds(lora)
    ways = eligible(lora, "lora", on_gpu=memory.on_gpu, deepspeed=memory.deepspeed)
    return first_way(lora, memory, ways) is not None


def _optimizer(resolved: Resolved, hardware: Hardware, gpu: Gpu | None) -> None:
    asked = resolved.config.hyperparameters.optim
    if asked == "auto":
        method, parallelism = resolved.config.method, resolved.config.resources.parallelism
        if method == "qlora" and gpu is not None and parallelism in ("auto", "ddp"):
            resolved.choose("hyperparameters.optim", "paged_adamw_8bit", "QLoRA on a GPU: 8-bit states, paged")
        else:
            exact = "exact, and needs no extra package"
            reason = exact if resolved.config.method == "full" else "the optimizer states of adapters are small"
            resolved.choose("hyperparameters.optim", "adamw_torch", reason)
    elif asked.endswith("bit"):
        path = "hyperparameters.optim"
        exact = f"Set {setting(path, 'adamw_torch')}"
        if "bitsandbytes" not in hardware.packages:
            message = f"{asked} needs the package bitsandbytes, which is not installed on this node."
            resolved.refuse("MISSING_PACKAGE", path, message, f"{exact}.")
        if gpu is None and asked.startswith("paged"):
            message = f"{asked} pages nothing on a CPU: its states are in main memory already."
            resolved.warn("OPTIMIZER_ON_CPU", message, f"{exact}, or omit it.", path)


def _check_memory(resolved: Resolved, memory: FreeMemory) -> None:
    """Adds the refusal INSUFFICIENT_MEMORY if the training does not fit, or the warning MEMORY_TIGHT."""
    config = resolved.config
    if not memory.holds_at_all(config):
        message = f"The training does not fit: it {memory.compared(config)}."
        smaller = _ways_to_need_less(config, memory)
        others = "a smaller base model, or a larger node."
        advice = f"Try, in this order: {', '.join(smaller)}; or {others}" if smaller else f"Use {others}"
        resolved.refuse("INSUFFICIENT_MEMORY", "method", message, advice)
    elif not memory.holds(config):
        message = f"Memory is tight: the training {memory.compared(config)}."
        advice = "Lower hyperparameters.per_device_train_batch_size or hyperparameters.max_length if memory runs out."
        resolved.warn("MEMORY_TIGHT", message, advice, "hyperparameters.per_device_train_batch_size")


def _ways_to_need_less(config: JobConfig, memory: FreeMemory) -> list[str]:
    """Returns the settings that may make a training fit, the smallest change first."""
    hyper, method, ways = config.hyperparameters, config.method, list[str]()
    least = {"per_device_train_batch_size": 1, "max_length": _SHORT, "gradient_checkpointing": True}
    if memory.holds_at_all(config, **least):
        ways += [f"hyperparameters.per_device_train_batch_size below {hyper.micro_batch}"] * (hyper.micro_batch > 1)
        ways += [f"hyperparameters.max_length below {hyper.max_length}"] * (hyper.max_length > _SHORT)
        ways += [option("hyperparameters.gradient_checkpointing", "true")] * (not hyper.gradient_checkpointing)
    # On a CPU each process has a share of the main memory.
    ways += [f"resources.world_size below {config.world_size}"] * (config.world_size > 1 and not memory.on_gpu)
    # Adapters learn little on random weights.
    if method == "full" and not has_random_weights(config.base_model):
        ways += [f"{option('method', 'lora')} or {option('method', 'qlora')}"]
    elif method == "full" and config.world_size == 1 and hyper.optim not in ("adafactor", "sgd"):
        # With it, a weight needs about 8 bytes, with AdamW 16.
        ways += [option("hyperparameters.optim", "adafactor")] * memory.holds_at_all(config, optim="adafactor", **least)
    ways += [option("method", "qlora")] if method == "lora" else []
    return ways


def check_disk(resolved: Resolved, disk: Disk) -> None:
    """Adds the refusal DISK_TOO_SMALL if checkpoints and package do not fit on the disk, or the warning DISK_TIGHT."""
    path, limit = "hyperparameters.save_total_limit", resolved.config.hyperparameters.save_total_limit
    parts = f"{disk.num_checkpoints} checkpoints of {_gib(disk.checkpoint_bytes)} at once"
    if disk.download_bytes:
        parts += f", {_gib(disk.download_bytes)} of weights to download, or to convert if the model is built in"
    if disk.corpus_bytes:
        parts += f", {_gib(disk.corpus_bytes)} of files of the corpus at once"
    if disk.package_bytes:
        parts += f", the package with its {_gib(disk.package_bytes)} of weights several times while it is made"
    need = f"about {_gib(disk.needed_bytes)} are needed ({parts}), {_gib(disk.free_bytes)} are free"
    ways = [f"lower {path} (now {limit})"] if disk.holds_artifacts and limit > 1 else []
    ways += ["train adapters instead of all weights"] if resolved.config.method == "full" else []
    ways += ["divide the corpus into smaller files"] if disk.corpus_bytes > disk.checkpoint_bytes else []
    advice = f"Ask the operator to free space in the node's FTF_HOME{', or ' * bool(ways)}{', or '.join(ways)}."
    if disk.verdict == "impossible":
        resolved.refuse("DISK_TOO_SMALL", path, f"The disk is too small for checkpoints and package: {need}.", advice)
    elif disk.verdict == "tight":
        resolved.warn("DISK_TIGHT", f"The disk is nearly full: {need}.", advice, path)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
