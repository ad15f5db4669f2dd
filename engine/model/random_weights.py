"""Writes a model of any architecture with random weights, to train it from the beginning."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import JobError
from engine.inl.auto_classes import register_inl
from engine.inl.sizes import SIZES
from engine.model_folder import model_error, read_json, refuse_unsafe

_TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPECIAL: Final = ("bos_token", "eos_token", "pad_token")
_NOT_OF_THE_SHAPE: Final = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "quantization_config")
"""Values of a config.json that describe stored weights."""


def write_random_model(config: Mapping[str, Any], out: Path, *, seed: int, tokenizer: Path) -> None:
    """Writes config.json, random float32 weights and a copy of the tokenizer in the folder `tokenizer` to `out`.

    `config` has the values of a config.json; its weights, if it has any, are not read. The initial values are those of
    the architecture in transformers; the same seed gives the same ones on processors with the same vector instructions.
    `out` appears atomically; if it exists, nothing is done.

    Raises JobError: those of `refuse_unsafe`; NOT_A_MODEL if transformers has no causal language model for the
    configuration, or if the tokenizer has more tokens than its vocabulary; NO_TOKENIZER.
    """
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _write(config, work, seed, tokenizer)
        # With the mode 0600 of mkdtemp and safetensors a worker under another account could not read the model.
        work.chmod(0o755)
        for file in work.iterdir():
            file.chmod(0o644)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        try:
            work.rename(out)
        except OSError:
            if not out.exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(config: Mapping[str, Any], folder: Path, seed: int, tokenizer: Path) -> None:
    shape = {key: value for key, value in config.items() if key not in _NOT_OF_THE_SHAPE}
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    refuse_unsafe("The model", folder)
    special = _copy_tokenizer(tokenizer, folder)
    register_inl()
    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        vocabulary = settings.get_text_config().vocab_size
        if (tokens := _num_tokens(folder)) > vocabulary:
            message = f"The tokenizer has {tokens:,} tokens, but vocab_size in config.json is {vocabulary:,}."
            raise model_error("NOT_A_MODEL", message, f"Set vocab_size to at least {tokens:,}.")
        for name, token in special.items():
            setattr(settings.get_text_config(), name, token)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        # What transformers raises for a setting of an unknown name or a wrong type depends on where it reads it.
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200].rstrip('.')}"
        message = f"transformers cannot make a model of this configuration: {said}."
        raise model_error("NOT_A_MODEL", message, "Use the configuration of another model.") from error
    model.save_pretrained(folder)


def _copy_tokenizer(tokenizer: Path, folder: Path) -> dict[str, int]:
    """Copies the files of a tokenizer. Returns the ids of its special tokens by their names in a config.json."""
    if not (tokenizer / "tokenizer.json").is_file():
        message = f"The folder {tokenizer.name} has no tokenizer.json."
        raise model_error("NO_TOKENIZER", message, "Use the tokenizer of another model.")
    for name in _TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    found = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = {}
    for name in _SPECIAL:
        token = settings.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and (id_ := found.token_to_id(text)) is not None:
            ids[f"{name}_id"] = id_
    return ids


def _num_tokens(folder: Path) -> int:
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return max(vocabulary.values(), default=-1) + 1


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.model.random_weights", description=(__doc__ or "").split("\n")[0]
    )
    shape = parser.add_mutually_exclusive_group(required=True)
    shape.add_argument("--size", choices=sorted(SIZES), help="named INL model")
    shape.add_argument("--config", type=Path, help="config.json of the shape")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    arguments = parser.parse_args()
    if arguments.config and not arguments.config.is_file():
        parser.error(f"there is no file {arguments.config}")
    try:
        config = SIZES[arguments.size].config() if arguments.size else read_json(arguments.config)
        write_random_model(config, arguments.out, seed=arguments.seed, tokenizer=arguments.tokenizer)
    except JobError as error:
        sys.exit(f"{error.reason}: {error.message} {error.advice}")


if __name__ == "__main__":
    main()
