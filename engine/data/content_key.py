"""What token shards depend on, as one key: where it is the same, so are the shards. Read from files, without loading a
tokenizer, so that a serving process can ask for them."""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.config.job import DataSource, JobConfig
from engine.file_hash import sha256_of

_LAYOUT = 4
"""Part of the key: raise it when the same input would give other shards, or other counts beside them."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_LIBRARIES = ("tokenizers", "transformers")


def content_key(config: JobConfig, tokenizer_dir: Path, sha256s: Mapping[str, str]) -> str:
    """A SHA-256, hexadecimal. `config` has the max_length that rows are cut to; `sha256s`: dataset id → that of its
    file. Packing, the number of epochs and everything else that decides no id is not in it."""
    hyper = config.hyperparameters

    def described(listed: Sequence[DataSource]) -> list[Any]:
        return [
            [sha256s[one.dataset], one.weight, sorted(one.mapping.items()), one.template, one.format] for one in listed
        ]

    trained = [config.training_data, *(phase.training_data for phase in config.phases)]
    draws = not config.evaluation_data or any(one.weight % 1 for listed in trained for one in listed)
    parts = {
        "layout": _LAYOUT,
        "libraries": [importlib.metadata.version(name) for name in _LIBRARIES],
        "tokenizer": {
            name: sha256_of(tokenizer_dir / name) for name in _TOKENIZER_FILES if (tokenizer_dir / name).is_file()
        },
        "chat_template": config.chat_template,
        "training": [described(listed) for listed in trained],
        "evaluation_data": described(config.evaluation_data),
        "holdout": None if config.evaluation_data else config.holdout_fraction,
        "seed": config.seed if draws else None,
        "system_prompt": config.system_prompt,
        "max_length": hyper.max_length,
        "truncation": hyper.truncation,
        "loss_on": hyper.loss_on,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
