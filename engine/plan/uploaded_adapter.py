"""Checks of an adapter that was made elsewhere: one safetensors file with the adapter's configuration in its header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import ValidationError

from engine.config.job import Lora
from engine.config.start import StartSource
from engine.errors import JobError, Violation
from engine.estimate.architecture import Architecture
from engine.model_folder import Header, StoredTensor, read_header
from engine.plan.resolved import Resolved
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution

_FIELD: Final = "spec.start_from"
_CONFIG: Final = "adapter_config"
"""Key of the header's metadata that contains adapter_config.json, as `ftf datasets upload-adapter` writes it."""
_MAX_CONFIG_CHARACTERS: Final = 1 << 20
_SETTINGS: Final = ("r", "lora_alpha", "use_rslora", "layers_to_transform")
_READ: Final = {*_SETTINGS, "peft_type", "task_type", "target_modules", "init_lora_weights"}
_WITHOUT_EFFECT: Final = {
    "base_model_name_or_path", "ensure_weight_tying", "inference_mode", "lora_dropout", "megatron_core",
    "peft_version", "qalora_group_size", "revision",
}  # fmt: skip
"""Keys of which no value changes what the weights of a plain adapter mean here."""
_PLAIN_INITIAL: Final = (None, True, False, "gaussian", "orthogonal", "eva")
"""Initial values that leave the base weights as they are."""
_DTYPES: Final[Mapping[str, np.dtype[Any]]] = {"F32": np.dtype("<u4"), "F16": np.dtype("<u2"), "BF16": np.dtype("<u2")}
_EXPONENTS: Final = {"F32": 0x7F800000, "F16": 0x7C00, "BF16": 0x7F80}
"""The bits that are all set in NaN and infinity."""
_NUMBERS_AT_ONCE: Final = 1 << 22
_SHOWN: Final = 5


def take_uploaded_adapter(resolved: Resolved, file: Path, given: Mapping[str, Any], architecture: Architecture) -> None:
    """Takes the settings of the job's adapter from the uploaded one that it starts from.

    `given` is the section `lora` of the caller's spec. Raises JobError: NOT_AN_ADAPTER, INVALID_ADAPTER,
    ADAPTER_MISMATCH, ADAPTER_NOT_FINITE, and INVALID_CONFIG if a given setting is not the adapter's.
    """
    name = resolved.config.start_from
    header, values = _read(file)
    lora = _lora(values)
    _check_tensors(header, lora, architecture)
    _check_finite(file, header)
    source = StartSource(name, resolved.config.model_copy(update={"lora": lora}), lora.r)
    source.check(resolved.config.model_copy(update={"lora": Lora.model_validate({**lora.model_dump(), **given})}))
    dropout = resolved.config.lora.lora_dropout
    lora = lora.model_copy(update={"lora_dropout": dropout})
    resolved.config = resolved.config.model_copy(update={"lora": lora})
    value = f"r = {lora.r}, lora_alpha = {lora.lora_alpha:g}"
    reason = f"the settings of the adapter {name}"
    if base := values.get("base_model_name_or_path"):
        reason += f", whose adapter_config.json names the base model {base!r:.200}"
    resolved.resolutions.append(Resolution(field="lora", value=value, reason=reason))


def _read(file: Path) -> tuple[Header, dict[str, Any]]:
    try:
        header = read_header(file)
    except (AttributeError, ValueError, TypeError, LookupError, RecursionError):
        raise _refused("INVALID_ADAPTER", "The uploaded file has no valid header of a safetensors file.") from None
    text = header.metadata.get(_CONFIG)
    if text is None:
        problem = f"The uploaded file has no {_CONFIG} in the metadata of its header, so it is no adapter."
        raise _refused("NOT_AN_ADAPTER", problem)
    try:
        values = json.loads(text) if len(text) <= _MAX_CONFIG_CHARACTERS else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise _refused("INVALID_ADAPTER", "The adapter's adapter_config.json is not a JSON object of at most 1 MiB.")
    return header, values


def _lora(values: Mapping[str, Any]) -> Lora:
    """Returns the adapter's settings. JobError("INVALID_ADAPTER") names the keys that mean more than plain LoRA."""
    if values.get("peft_type") != "LORA" or values.get("task_type") not in (None, "CAUSAL_LM"):
        shown = f"peft_type {values.get('peft_type')!r:.40} and task_type {values.get('task_type')!r:.40}"
        raise _refused("INVALID_ADAPTER", f"The adapter has {shown}; only LORA for CAUSAL_LM can be trained further.")
    more = [
        key for key, value in values.items()
        if key not in _READ | _WITHOUT_EFFECT and value not in (None, False, "", "none", [], {})
    ]  # fmt: skip
    if values.get("init_lora_weights") not in _PLAIN_INITIAL:
        # Such adapters belong to changed base weights, unless they were converted.
        more.append("init_lora_weights")
    if more:
        named = ", ".join(f"{key[:60]} = {values[key]!r:.60}" for key in more[:_SHOWN])
        raise _refused("INVALID_ADAPTER", f"The adapter_config.json sets what is not supported in uploads: {named}.")
    settings = {key: values[key] for key in _SETTINGS if values.get(key) is not None}
    if type(settings.get("lora_alpha")) is int:
        settings["lora_alpha"] = float(settings["lora_alpha"])
    targets = values.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        settings["target_modules_pattern"] = targets
    else:
        settings["target_modules"] = [targets] if isinstance(targets, str) else targets
    missing = [key for key in ("r", "lora_alpha", "target_modules") if values.get(key) in (None, [])]
    if missing:
        raise _refused("INVALID_ADAPTER", f"The adapter_config.json has no {', '.join(missing)}.")
    try:
        return Lora.model_validate({"lora_dropout": 0.0, **settings})
    except ValidationError as error:
        first = error.errors()[0]
        problem = f"The adapter_config.json has an invalid {'.'.join(map(str, first['loc']))}: {first['msg']}."
        raise _refused("INVALID_ADAPTER", problem) from error


def _check_tensors(header: Header, lora: Lora, architecture: Architecture) -> None:
    """Raises JobError("ADAPTER_MISMATCH") unless the tensors are those that such an adapter of the base model has."""
    expected: dict[str, tuple[int, int]] = {}
    for block, layers in enumerate(architecture.targets(lora)):
        for layer in layers:
            path = f"base_model.model.{architecture.blocks_path}.{block}.{layer.name}"
            expected[f"{path}.lora_A.weight"] = (lora.r, layer.columns)
            expected[f"{path}.lora_B.weight"] = (layer.rows, lora.r)
    found = {name: tensor.shape for name, tensor in header.tensors.items()}
    missing, unknown = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or unknown:
        parts = [f"lacks {_listed(missing)}"] * bool(missing) + [f"has unknown {_listed(unknown)}"] * bool(unknown)
        problem = f"The adapter does not fit the base model: it {' and '.join(parts)}."
        raise _refused("ADAPTER_MISMATCH", problem, "Name the base model that it was trained on.")
    for name, shape in expected.items():
        if found[name] != shape:
            problem = f"The adapter does not fit the base model: {name} has the shape {found[name]} instead of {shape}."
            raise _refused("ADAPTER_MISMATCH", problem, "Name the base model that it was trained on.")
    if others := sorted({tensor.dtype for tensor in header.tensors.values()} - _DTYPES.keys()):
        raise _refused("INVALID_ADAPTER", f"The adapter has tensors of type {others[0]}; use F32, F16 or BF16.")


def _check_finite(file: Path, header: Header) -> None:
    with file.open("rb") as opened:
        for name, tensor in header.tensors.items():
            if not _is_finite(opened, tensor):
                problem = f"The adapter's tensor {name} contains NaN or infinity; training could only spread them."
                raise _refused("ADAPTER_NOT_FINITE", problem, "Upload an earlier checkpoint of it.")


def _is_finite(opened: Any, tensor: StoredTensor) -> bool:
    kind, exponent = _DTYPES[tensor.dtype], _EXPONENTS[tensor.dtype]
    opened.seek(tensor.offset)
    left = int(np.prod(tensor.shape))
    while left:
        bits = np.frombuffer(opened.read(min(left, _NUMBERS_AT_ONCE) * kind.itemsize), kind)
        if not bits.size or bool(((bits & exponent) == exponent).any()):
            return False
        left -= bits.size
    return True


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:120] for name in names[:_SHOWN]) + more


def _refused(reason: str, problem: str, advice: str = "Upload a plain LoRA adapter, as peft saves it.") -> JobError:
    return JobError(reason, problem, advice, [Violation(_FIELD, problem)])
