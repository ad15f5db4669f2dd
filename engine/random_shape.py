"""The configuration of a model that is to get random weights: its shape, and what follows from its tokenizer."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from engine.inl_sizes import SIZES, VOCABULARY
from engine.model_folder import SHAPES, model_error, read_json
from engine.random_reference import RandomReference
from engine.tokenizer_files import copy_tokenizer, num_tokens, write_corpus_tokenizer

_SPECIAL: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_MULTIPLE: Final = 64
"""The vocabulary is rounded up to a multiple of it, which matrix multiplications on GPUs are fast with."""


def write_shape(reference: RandomReference, shape: Path | None, tokenizer: Path | None, out: Path) -> None:
    """Writes config.json and the tokenizer's files to the folder `out`.

    `shape` is a folder with the config.json of a model, None for an INL size. `tokenizer` is a folder with a tokenizer;
    None for one that is not trained yet, of which the vocabulary has the size that the reference asks for.

    Raises JobError: NO_TOKENIZER; NOT_A_MODEL if a file cannot be read, or if the shape's own tokenizer has more tokens
    than its vocabulary.
    """
    special = copy_tokenizer(tokenizer, out) if tokenizer else {}
    tokens = num_tokens(out) if tokenizer else reference.vocab_size
    if shape is None:
        of_corpus = tokenizer is None or reference.corpus_sha256
        config = SIZES[reference.shape].config(_rounded(tokens) if of_corpus else max(VOCABULARY, tokens)) | special
    else:
        config = read_json(shape / "config.json")
        if reference.has_own_tokenizer:
            _check_vocabulary(config, tokens)
        else:
            config = _with_tokenizer(config, special, tokens)
    _write(out / "config.json", config)


def write_trained_shape(shape: Path, tokenizer: Path, out: Path) -> None:
    """Writes the files of a model whose tokenizer was just trained to the new folder `out`: those of `shape`, the
    folder that `write_shape` wrote without a tokenizer, with the tokenizer.json `tokenizer`."""
    out.mkdir(parents=True)
    write_corpus_tokenizer(tokenizer, out / "trained")
    special = copy_tokenizer(out / "trained", out)
    shutil.rmtree(out / "trained")
    before = read_json(shape / "config.json")
    config = _with_tokenizer(before, special, num_tokens(out))
    _write(out / "config.json", config)
    if (shape / SHAPES).is_file():
        old, new = (_section(values).get("vocab_size") for values in (before, config))
        shapes = read_json(shape / SHAPES)
        _write(out / SHAPES, {name: [new, *dims[1:]] if dims[:1] == [old] else dims for name, dims in shapes.items()})


def _with_tokenizer(config: Mapping[str, Any], special: Mapping[str, int], tokens: int) -> dict[str, Any]:
    """Returns the configuration with the vocabulary and the special tokens of another tokenizer."""
    ids = {name: special.get(name) for name in _SPECIAL}
    changed = {"vocab_size": _rounded(tokens), **ids}
    text = config.get("text_config")
    if isinstance(text, Mapping):
        return {**config, **ids, "text_config": {**text, **changed}}
    return {**config, **changed}


def _check_vocabulary(config: Mapping[str, Any], tokens: int) -> None:
    vocabulary = _section(config).get("vocab_size")
    if isinstance(vocabulary, int) and tokens > vocabulary:
        message = f"The tokenizer has {tokens:,} tokens, but vocab_size in config.json is {vocabulary:,}."
        advice = "Name the tokenizer after the shape (`,tokenizer=`): the vocabulary then has its size."
        raise model_error("NOT_A_MODEL", message, advice)


def _section(config: Mapping[str, Any]) -> Mapping[str, Any]:
    text = config.get("text_config")
    return text if isinstance(text, Mapping) else config


def _rounded(tokens: int) -> int:
    return -(-tokens // _MULTIPLE) * _MULTIPLE


def _write(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2), "utf-8")
