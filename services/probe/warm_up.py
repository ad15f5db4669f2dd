"""Warm-up of the probe's children, before they have an input."""

import importlib


def warm_up() -> None:
    """Imports the module that otherwise loads with the first tokenizer, and takes longest."""
    importlib.import_module("transformers.tokenization_utils_tokenizers")
