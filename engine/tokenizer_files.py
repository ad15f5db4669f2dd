"""Reads and copies the tokenizer in a model's folder without loading it: a hostile one may never end."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from engine.model_folder import model_error, read_json

_FILES: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPECIAL: Final = ("bos_token", "eos_token", "pad_token")
_ANOTHER: Final = "Use the tokenizer of another model."


END_OF_TEXT: Final = "<|endoftext|>"
"""The only special token of a tokenizer that was trained on the rows of a job."""
_CORPUS_SETTINGS: Final = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END_OF_TEXT,
    "clean_up_tokenization_spaces": False,
}


def write_corpus_tokenizer(file: Path, target: Path) -> None:
    """Writes a tokenizer that was trained on the rows of a job to the folder `target`; `file` is its tokenizer.json,
    which is all that was learned."""
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target / "tokenizer.json")
    (target / "tokenizer_config.json").write_text(json.dumps(_CORPUS_SETTINGS, indent=2), "utf-8")


def copy_tokenizer(folder: Path, target: Path) -> dict[str, int]:
    """Copies the files of a tokenizer. Returns the ids of its special tokens by their names in a config.json.

    Raises JobError NO_TOKENIZER if `folder` has none, NOT_A_MODEL if its files cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise model_error("NO_TOKENIZER", f"The folder {folder.name} has no tokenizer.json.", _ANOTHER)
    for name in _FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    ids, special = dict(_tokens(folder)), {}
    for name in _SPECIAL:
        token = settings.get(name)
        text = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(text, str) and text in ids:
            special[f"{name}_id"] = ids[text]
    return special


def num_tokens(folder: Path) -> int:
    """Returns the size of the vocabulary that a model needs: the largest id of a token, and one.

    Raises JobError NOT_A_MODEL if tokenizer.json cannot be read.
    """
    return max((id_ for _, id_ in _tokens(folder)), default=-1) + 1


def _tokens(folder: Path) -> Iterator[tuple[str, int]]:
    """Yields the tokens of a tokenizer with their ids."""
    read = read_json(folder / "tokenizer.json")
    try:
        yield from _of_model(read["model"]["vocab"])
        for token in read.get("added_tokens") or []:
            yield token["content"], int(token["id"])
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise model_error("NOT_A_MODEL", "tokenizer.json of the base model cannot be read.", _ANOTHER) from error


def _of_model(vocabulary: Any) -> Iterator[tuple[str, int]]:
    if isinstance(vocabulary, Mapping):
        yield from ((text, int(id_)) for text, id_ in vocabulary.items())
    else:
        # Unigram models list their tokens, each with its score.
        yield from ((text, id_) for id_, (text, _) in enumerate(vocabulary))
