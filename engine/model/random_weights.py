"""Gives the model of a configuration random weights, to train it from the beginning."""

import argparse
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from engine.errors import JobError
from engine.inl.auto_classes import register_inl
from engine.model.materialise import exit_with_stdin
from engine.model_folder import SHAPES, model_error, refuse_unsafe
from engine.tokenizer_files import num_tokens

_REFUSED = 3
"""Exit status for a configuration that was refused."""


def write_random_weights(folder: Path, seed: int) -> None:
    """Writes random float32 weights of the model that config.json in `folder` describes, beside its tokenizer.

    The initial values are those of the architecture in transformers; the same seed gives the same ones, on processors
    with other vector instructions only if torch is told to use none, as the catalogue does.

    Raises JobError: those of `refuse_unsafe`; NOT_A_MODEL if transformers has no causal language model for the
    configuration, or if the tokenizer has more tokens than its vocabulary.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _model(folder)
    model.save_pretrained(folder)
    for file in folder.iterdir():
        # With the mode 0600 of safetensors a worker under another account could not read the model.
        file.chmod(0o644)
        with file.open("rb") as handle:
            os.fsync(handle.fileno())


def write_shapes(folder: Path) -> None:
    """Writes the shapes of the weights that `write_random_weights` would write, without making them. Raises what it
    raises."""
    with torch.device("meta"):
        model = _model(folder)
    shared = set(model.all_tied_weights_keys or ())
    shapes = {name: [*tensor.shape] for name, tensor in model.state_dict().items() if name not in shared}
    (folder / SHAPES).write_text(json.dumps(shapes), "utf-8")


def _model(folder: Path) -> Any:
    refuse_unsafe("The model", folder)
    register_inl()
    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if settings.is_encoder_decoder:
            message = "The configuration is that of an encoder and a decoder, not of a causal language model."
            raise model_error("NOT_CAUSAL_LM", message, "Use the configuration of a causal language model.")
        vocabulary = settings.get_text_config().vocab_size
        has_tokenizer = (folder / "tokenizer.json").is_file()
        if has_tokenizer and (tokens := num_tokens(folder)) > vocabulary:
            message = f"The tokenizer has {tokens:,} tokens, but vocab_size in config.json is {vocabulary:,}."
            raise model_error("NOT_A_MODEL", message, f"Set vocab_size to at least {tokens:,}.")
        return AutoModelForCausalLM.from_config(settings, dtype=torch.float32, trust_remote_code=False)
    except (AttributeError, LookupError, StrictDataclassError, TypeError, ValueError) as error:
        # What transformers raises for a setting of an unknown name or a wrong type depends on where it reads it.
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200].rstrip('.')}"
        message = f"transformers cannot make a model of this configuration: {said}."
        raise model_error("NOT_A_MODEL", message, "Use the configuration of another model.") from error


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.model.random_weights", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="folder with config.json and a tokenizer")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    parser.add_argument(
        "--shapes-only", action="store_true", help=f"write {SHAPES} with the shapes of the weights, and no weights"
    )
    parser.add_argument(
        "--until-stdin-ends", action="store_true", help="exit at the end of stdin; print a refusal as JSON"
    )
    arguments = parser.parse_args()
    if arguments.until_stdin_ends:
        threading.Thread(target=exit_with_stdin, daemon=True).start()
    try:
        if arguments.shapes_only:
            write_shapes(arguments.folder)
        else:
            write_random_weights(arguments.folder, arguments.seed)
    except JobError as error:
        if arguments.until_stdin_ends:
            sys.stdout.write(json.dumps([error.reason, error.message, error.advice]))
            sys.exit(_REFUSED)
        sys.exit(f"{error.reason}: {error.message} {error.advice}")


if __name__ == "__main__":
    main()
