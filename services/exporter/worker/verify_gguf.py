"""Verifies that a GGUF file is the model of the checkpoint, or the base model: weights, logits, tokens, template."""

import gc
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, dequantize, get_tensor_name_map
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from engine.config.job import CONVERTED_TYPES
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from engine.model.heap import return_freed_memory
from engine.model.merge import differences, weight_files
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.comparison import Bounds, Comparison, Verified, comparison_message, logits
from services.exporter.worker.forms import Form, GgufFile
from services.exporter.worker.gguf_files import ADD_BOS, adds_bos, chat_template, unrounded_file
from services.exporter.worker.merged import merge_settings
from services.exporter.worker.rendering import check_tokens
from services.exporter.worker.sentencepiece_tokens import SentencePieceTokens, is_sentencepiece
from services.exporter.worker.verify_merged import CheckpointLogits
from services.hardware import available_memory

ROUNDING: Final = {"f32": 1e-5, "f16": 1e-3, "bf16": 4e-3, "q8_0": 5e-3}
"""Largest difference of a number to the unrounded one, relative to the largest number of the tensor: half a step of the
type, and a margin for other roundings."""
_QUANTIZATION: Final = {
    "F32": 0.0,
    "F16": 1e-3,
    "BF16": 8e-3,
    "Q8_0": 0.05,
    "Q6_K": 0.1,
    "Q5_0": 0.2,
    "Q5_1": 0.2,
    "Q5_K": 0.2,
    "Q4_0": 0.4,
    "Q4_1": 0.4,
    "Q4_K": 0.4,
    "IQ4_NL": 0.4,
    "Q3_K": 0.6,
    "Q2_K": 0.9,
}
"""Largest difference of a row of a tensor to the unrounded one, relative to the row, both as root mean squares. About
twice that of rows with a few numbers much larger than the others; a row of zeros in place of another differs by 1."""
_SMALLEST_ROW: Final = 1.3e-4
"""A root mean square by which rows of any type but F32 may differ: half of the smallest step of a block's scale, a
float16, times the largest whole number of a block."""
_ROWS_AT_ONCE: Final = 4096
_SMALLEST: Final = 1e-7
"""A difference that float16 cannot express in any tensor."""
_UNROUNDED: Final = Bounds(mean_kl=1e-3)
"""For f32, f16 and bf16, against a checkpoint in float32."""
_QUANTISED: Final = Bounds(mean_kl=0.02)
"""For q8_0, or a checkpoint in 16 bits."""
_METADATA: Final = {
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "vocab_size": "vocab_size",
}
"""Keys of a GGUF file, after the architecture, and the settings of the configuration that they state."""


@dataclass(frozen=True)
class _Largest:
    """The largest difference of a tensor to the one it was made of."""

    name: str = ""
    difference: float = 0.0
    """Relative to the largest number of the tensor."""


@dataclass(frozen=True)
class Unrounded:
    """The file that those of llama.cpp's library were made of."""

    reader: GGUFReader
    unmatched: str
    """Says how many of its tensors could not be compared with the model; empty: none."""


def verify_unrounded(
    child_input: ExportInput, package: Path, source: Path, on_tensor: Callable[[], None] = lambda: None
) -> Unrounded | None:
    """Compares the file with the model in the folder `source`, and that with what merging gives, which no logits show
    without a bound. Returns None if no file was made of it. Raises JobError("EXPORT_DIFFERS")."""
    if not child_input.config.export.quantized_gguf_types:
        return None
    file = unrounded_file(child_input, package, source)
    _check_source(child_input, file.name, source)
    reader = GGUFReader(file)
    return Unrounded(reader, _check_own_tensors(child_input, file.name, "f32", reader, source, on_tensor))


def verify_gguf(
    child_input: ExportInput,
    form: Form,
    package: Path,
    source: Path,
    checkpoint: CheckpointLogits,
    unrounded: Unrounded | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> Verified:
    """Compares a file of the unpacked package with the model that it was made of, in the folder `source`, and with the
    checkpoint. `unrounded` is needed for a type that llama.cpp's library makes. Raises JobError("EXPORT_DIFFERS").
    `on_row` is called for each row and each tensor."""
    assert form.gguf  # noqa: S101 - each file is a form
    about, file = form.gguf, package / form.gguf.file
    reader = GGUFReader(file)
    _check_text(child_input, about, reader)
    _check_metadata(
        child_input, about, reader, AutoConfig.from_pretrained(source, local_files_only=True).get_text_config()
    )
    if about.type in CONVERTED_TYPES:
        unrounded = None
    else:
        assert unrounded  # noqa: S101 - the file was made of it
        _check_quantization(child_input, about, reader, unrounded.reader, on_row)

    def compare_own_tensors() -> str:
        if unrounded:
            return unrounded.unmatched
        _check_source(child_input, about.file, source)
        return _check_own_tensors(child_input, about.file, about.type, reader, source, on_row)

    # The reader of transformers holds the tensors of the file beside those of the model.
    needed = max(checkpoint.size_bytes, 2 * sum(each.stat().st_size for each in weight_files(source)))
    if needed > 0.8 * available_memory():
        return Verified(None, "the model does not fit into free memory" + compare_own_tensors())
    stored = checkpoint.stored()
    gc.collect()
    return_freed_memory()
    model = load_file(file, source, reader)
    if isinstance(model, str):
        return Verified(None, model + compare_own_tensors())
    if unrounded:
        largest = _Largest()
        _check_loaded_rows(child_input, about, model, source)
    else:
        largest = _largest(_loaded_tensors(model, source))
        _check_rounding(child_input, about.file, about.type, largest)
    found = Comparison.of(stored.read(), logits(model, checkpoint.rows.rows, on_row))
    config = child_input.config
    original = config.method == "qlora" and config.export.merge_base == "original"
    bounds = bounds_of_type(about.type, checkpoint.dtype, original=original)
    if not bounds.hold(found):
        raise differs(
            child_input,
            about.file,
            f"mean KL {found.mean_kl:.3g} nats per position, 99th percentile {found.p99_kl:.3g}, "
            f"{found.same_next_token:.1%} equal next tokens, at {found.num_positions:,} positions of {found.num_rows} "
            f"rows (bound: mean KL {bounds.mean_kl:g}). {largest.name} differs most from what it was made of: by "
            f"{100 * largest.difference:.2g}% of its maximum",
        )
    dtype = str(checkpoint.dtype).removeprefix("torch.")
    return Verified(comparison_message(found, bounds, checkpoint.rows.source, dtype))


def bounds_of_type(type_: str, checkpoint: torch.dtype, *, original: bool) -> Bounds:
    """Returns the bounds of a file of a type, against a checkpoint that was run in a number format. `original`: the
    adapter was trained on other weights, quantized ones."""
    if original or type_ not in CONVERTED_TYPES:
        return Bounds()
    return _UNROUNDED if type_ != "q8_0" and checkpoint == torch.float32 else _QUANTISED


def load_file(file: Path, source: Path, reader: GGUFReader) -> Any:
    """Returns the model as transformers reads it from the file, or a text that says why it cannot.

    Its configuration is that of the source: the reader loses parts of it, such as the scaling of RoPE.
    """
    architecture = text_of(reader, "general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        return f"transformers does not read GGUF files of the architecture {architecture}"
    read: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = read(
            file.parent,
            gguf_file=file.name,
            config=AutoConfig.from_pretrained(source, local_files_only=True),
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
    except (KeyError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        return f"transformers does not read the GGUF file ({str(error)[:200]})"
    if lost := sorted({*info["missing_keys"], *(each[0] for each in info["mismatched_keys"])}):
        return f"transformers does not read {lost[0]} from the GGUF file"
    return model


def _tensors(source: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for file in weight_files(source):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, tensors.get_tensor(name)


def _loaded_tensors(model: Any, source: Path) -> Iterator[tuple[str, float]]:
    """Yields the difference of each tensor that has the same name in the model that transformers read."""
    loaded = model.state_dict()
    for name, expected in _tensors(source):
        if name in loaded:
            yield name, relative_difference(expected, loaded[name])


def _own_tensors(
    reader: GGUFReader, source: Path, bound: float, on_tensor: Callable[[], None]
) -> Iterator[tuple[str, float | None]]:
    """Yields the difference of each tensor to that of the file with its name in llama.cpp; None for one without.

    llama.cpp reorders rows of some tensors, and adds one to the weights of some norms.
    """
    architectures = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    architecture = architectures.get(text_of(reader, "general.architecture"))
    layers = AutoConfig.from_pretrained(source, local_files_only=True).get_text_config().num_hidden_layers
    names = get_tensor_name_map(architecture, layers) if architecture is not None else None
    own = {tensor.name: tensor for tensor in reader.tensors}
    for name, expected in _tensors(source):
        on_tensor()
        mapped = names.get_name(name, try_suffixes=(".weight", ".bias")) if names else None
        tensor = own.get(mapped) if mapped else None
        if tensor is None:
            yield name, None
            continue
        found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if found.shape != expected.shape:
            yield name, None
            continue
        difference = relative_difference(expected, found)
        if not difference <= bound:
            difference = min(difference, relative_difference(expected.flatten().sort()[0], found.flatten().sort()[0]))
            if expected.dim() == 1:
                difference = min(difference, relative_difference(expected, found - 1))
        yield name, difference


def relative_difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    """Returns the largest difference of a number, relative to the largest one that is expected; infinity for another
    shape and for numbers that are not finite."""
    if found.shape != expected.shape:
        return math.inf
    if not expected.numel():
        return 0.0
    difference = float((expected - found.to(expected.dtype)).abs().max())
    if not math.isfinite(difference):
        return math.inf
    return 0.0 if difference <= _SMALLEST else difference / (float(expected.abs().max()) or _SMALLEST)


def _largest(found: Iterator[tuple[str, float]]) -> _Largest:
    return max((_Largest(*each) for each in found), key=lambda each: each.difference, default=_Largest())


def _check_own_tensors(
    child_input: ExportInput, file: str, type_: str, reader: GGUFReader, source: Path, on_tensor: Callable[[], None]
) -> str:
    """Checks the tensors that have a counterpart. Returns what to say about the others."""
    compared = list(_own_tensors(reader, source, ROUNDING[type_], on_tensor))
    _check_rounding(child_input, file, type_, _largest((name, value) for name, value in compared if value is not None))
    unmatched = [name for name, value in compared if value is None]
    return f"; {len(unmatched)} of its {len(compared)} tensors were not compared" if unmatched else ""


def _check_rounding(child_input: ExportInput, file: str, type_: str, largest: _Largest) -> None:
    bound = ROUNDING[type_]
    if not largest.difference <= bound:
        raise differs(
            child_input,
            file,
            f"{largest.name} differs from what it was made of by {100 * largest.difference:.2g}% of its maximum "
            f"(bound: {100 * bound:.2g}%)",
        )


def _check_quantization(
    child_input: ExportInput, about: GgufFile, reader: GGUFReader, made_of: GGUFReader, on_tensor: Callable[[], None]
) -> None:
    """Compares each row of each tensor with that of the unrounded file."""
    originals = {tensor.name: tensor for tensor in made_of.tensors}
    if other := sorted(originals.keys() ^ {tensor.name for tensor in reader.tensors}):
        raise differs(
            child_input, about.file, f"it and the file that it was made of do not both have the tensor {other[0]}"
        )
    for tensor in reader.tensors:
        on_tensor()
        original, type_ = originals[tensor.name], tensor.tensor_type.name
        if type_ not in _QUANTIZATION or [*tensor.shape] != [*original.shape]:
            raise differs(
                child_input,
                about.file,
                f"its {tensor.name} has the type {type_} and the shape {[*map(int, tensor.shape)]}",
            )
        data, expected = (each.data.reshape(-1, each.data.shape[-1]) for each in (tensor, original))
        for start in range(0, len(data), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            found = torch.from_numpy(dequantize(data[rows], tensor.tensor_type).copy())
            difference = _worst_row(torch.from_numpy(expected[rows].copy()), found, exact=type_ == "F32")
            _check_row(child_input, about, f"{tensor.name} ({type_})", difference, _QUANTIZATION[type_])


def _check_loaded_rows(child_input: ExportInput, about: GgufFile, model: Any, source: Path) -> None:
    """Compares the model that transformers read with the one that was converted, within the bound of the coarsest type
    of the file."""
    loaded, bound = model.state_dict(), max(_QUANTIZATION[type_] for type_ in about.tensor_types)
    for name, expected in _tensors(source):
        if name in loaded:
            _check_row(child_input, about, name, _worst_row(expected, loaded[name].to(expected.dtype)), bound)


def _worst_row(expected: torch.Tensor, found: torch.Tensor, *, exact: bool = False) -> float:
    """Returns the largest relative difference of a row; NaN if a number is not one."""
    if found.shape != expected.shape:
        return math.inf
    error, size = ((each.pow(2).mean(-1)).sqrt() for each in (found - expected, expected))
    return float(((error - (0 if exact else _SMALLEST_ROW)).clamp(min=0) / size.clamp(min=1e-30)).max())


def _check_row(child_input: ExportInput, about: GgufFile, name: str, difference: float, bound: float) -> None:
    if not difference <= bound:
        raise differs(
            child_input,
            about.file,
            f"a row of {name} differs from what it was made of by {difference:.0%} of its size (bound: {bound:.0%})",
        )


def _check_source(child_input: ExportInput, file: str, source: Path) -> None:
    """Checks that the model that was converted is what merging gives; elsewhere the logits show it."""
    settings = merge_settings(child_input)
    made = differences(source, settings.base, settings.adapter, dtype=torch.float32, quantised=settings.quantised)
    if (largest := _largest(made)).difference > 0:
        expected = "that of the base model" if child_input.of_base else "what merging gives"
        raise differs(child_input, file, f"{largest.name} is not {expected}")


def _check_metadata(child_input: ExportInput, about: GgufFile, reader: GGUFReader, config: Any) -> None:
    """Compares the settings of the model that the file states with those of its configuration."""
    architecture = text_of(reader, "general.architecture")
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        # Others give the keys meanings of their own.
        return
    expected: dict[str, Any] = {key: getattr(config, name, None) for key, name in _METADATA.items()}
    rope = getattr(config, "rope_parameters", None) or {}
    expected["rope.freq_base"] = rope.get("rope_theta")
    for key, value in expected.items():
        field = reader.get_field(f"{architecture}.{key}")
        stated = field.contents() if field else None
        if not isinstance(value, int | float) or not isinstance(stated, int | float):
            continue
        # Models without such layers state 0.
        if stated and not math.isclose(value, stated, rel_tol=1e-6):
            raise differs(child_input, about.file, f"its {architecture}.{key} is {stated:g} instead of {value:g}")


def _check_text(child_input: ExportInput, about: GgufFile, reader: GGUFReader) -> None:
    """Compares tokens, merges, special tokens and chat template with those of the training. With equal tokens and
    merges, and the rule for words that the converter recognized, a text has the same ids; of a tokenizer without merges
    the held-out conversations show it."""
    if text_of(reader, "tokenizer.chat_template") != chat_template(child_input):
        whose = "the base model" if child_input.of_base else "the training"
        raise differs(child_input, about.file, f"its chat template is another one than that of {whose}")
    tokenizer = Tokenizer(child_input.model.path, child_input.config.chat_template)
    tokens = _texts(reader, "tokenizer.ggml.tokens")
    for token, id_ in tokenizer.vocabulary.items():
        found = tokens[id_] if id_ < len(tokens) else None
        # llama.cpp matches added tokens with the text itself, in which a space is a space. SentencePiece has a byte
        # where tokenizer.json has its character.
        if found not in (token, token.replace("▁", " "), f"<0x{ord(token):02X}>" if len(token) == 1 else token):
            raise differs(child_input, about.file, f"its token {id_} is {found!r} instead of {token!r}")
    merges = _merges(json.loads((child_input.model.path / "tokenizer.json").read_text("utf-8")))
    found_merges = _texts(reader, "tokenizer.ggml.merges")
    if found_merges and found_merges != merges:
        raise differs(child_input, about.file, "its tokenizer has other merges")
    if is_sentencepiece(reader):
        check_tokens(child_input, SentencePieceTokens.of(reader).encode, about.file)
    field = reader.get_field("tokenizer.ggml.eos_token_id")
    if field is None or field.contents() != tokenizer.eos_id:
        ends = "the base model's" if child_input.of_base else "which ends the trained answers"
        raise differs(child_input, about.file, f"its end-of-text token is not {tokenizer.eos_token}, {ends}")
    field = reader.get_field(ADD_BOS)
    if field is not None and field.contents() != adds_bos(child_input):
        raise differs(child_input, about.file, f"{ADD_BOS} is {field.contents()}")


def _merges(tokenizer: Mapping[str, Any]) -> list[str]:
    """Returns the merges as GGUF has them: a space within a part is a letter."""
    found = tokenizer.get("model", {}).get("merges") or []
    return [each if isinstance(each, str) else " ".join(part.replace(" ", "Ġ") for part in each) for each in found]


def text_of(reader: GGUFReader, key: str) -> str:
    """Returns the text of a key of a file; empty if there is none."""
    field = reader.get_field(key)
    return str(field.contents()) if field else ""


def _texts(reader: GGUFReader, key: str) -> list[str]:
    field = reader.get_field(key)
    return [bytes(field.parts[index]).decode("utf-8") for index in field.data] if field else []


def differs(child_input: ExportInput, file: str, problem: str) -> JobError:
    """Returns the failure of a file that is not the model of the checkpoint, or not the base model."""
    return JobError(
        "EXPORT_DIFFERS",
        f"{file} differs from {child_input.original}: {problem}. Nothing of the package is published.",
        "Set export.gguf_types to bf16 or f32, or export the merged model. If it happens with each, please report it.",
    )
