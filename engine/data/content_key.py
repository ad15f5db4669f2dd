"""Computes the key of token shards from everything that decides their content. Reads files without loading a tokenizer,
so that a serving process can compute it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.job import DataSource, JobConfig
from engine.file_hash import sha256_of
from engine.random_reference import RandomReference

_LAYOUT = 9
"""Part of the key. Increase it if the same input gives different shards, or different counts in prepared.json."""
_CORPUS_TOKENIZER = 1
"""Part of the key of shards with their own tokenizer. Increase it if the same rows give another tokenizer."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_CORPUS = 2
"""Part of the key of a streamed corpus. Increase it if the same files give other counts in prepared.json."""
_LIBRARIES = ("tokenizers", "transformers")


def content_key(config: JobConfig, tokenizer_dir: Path, sha256s: Mapping[str, str]) -> str:
    """Returns the key as a hexadecimal SHA-256. `config` has the max_length at which rows are truncated; `sha256s` maps
    a dataset id to the SHA-256 of its file. Settings that decide no token id, such as packing, are not part of it."""
    hyper = config.hyperparameters

    def described(listed: Sequence[DataSource]) -> list[Any]:
        return [
            [
                sha256s[one.dataset],
                one.weight,
                sorted(one.mapping.items()),
                one.template,
                one.format,
                one.max_samples,
                one.max_tokens,
            ]
            for one in listed
        ]

    trained = [config.training_data, *(phase.training_data for phase in config.phases)]
    listed = [one for sources in (*trained, config.evaluation_data) for one in sources]
    draws = not config.evaluation_data or any(one.weight % 1 or one.max_samples or one.max_tokens for one in listed)
    parts = {
        "layout": _LAYOUT,
        "libraries": [importlib.metadata.version(name) for name in _LIBRARIES],
        "tokenizer": _tokenizer(config, tokenizer_dir),
        "chat_template": config.chat_template,
        "training": [described(listed) for listed in trained],
        "evaluation_data": described(config.evaluation_data),
        "holdout": None if config.evaluation_data else config.holdout_fraction,
        "seed": config.seed if draws else None,
        "system_prompt": config.system_prompt,
        "max_length": hyper.max_length,
        "truncation": hyper.truncation,
        "loss_on": hyper.loss_on,
        "streaming": hyper.streaming and _CORPUS,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _tokenizer(config: JobConfig, folder: Path) -> dict[str, Any]:
    """Describes the tokenizer: by its files, or by how it is trained on the rows."""
    named = RandomReference.parse(config.base_model)
    if named is not None and named.needs_corpus:
        return {"corpus": [_CORPUS_TOKENIZER, named.vocab_size]}
    return {name: sha256_of(folder / name) for name in _TOKENIZER_FILES if (folder / name).is_file()}
