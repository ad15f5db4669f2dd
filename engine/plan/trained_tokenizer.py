"""The base model of a job whose tokenizer was trained on its rows, and what the caller is told about it."""

from dataclasses import replace
from pathlib import Path

from engine.catalogue import LocalModel
from engine.data.corpus_tokenizer import TrainedTokenizer, asked_tokens
from engine.file_hash import sha256_of
from engine.plan.resolved import Resolved
from engine.random_reference import RandomReference
from engine.random_shape import write_trained_shape
from finetuneflow.v1.fine_tuning_job_pb2 import Resolution


def with_trained_tokenizer(model: LocalModel, tokenizer: Path, folder: Path) -> LocalModel:
    """Returns the model with the tokenizer.json `tokenizer`; its configuration is written to the new folder."""
    named = RandomReference.parse(model.id)
    assert named is not None  # noqa: S101 - it needs a corpus
    write_trained_shape(model.path, tokenizer, folder)
    return replace(model, id=str(named.with_corpus_tokenizer(sha256_of(tokenizer))), path=folder)


def note_tokenizer(resolved: Resolved, trained: TrainedTokenizer) -> None:
    """Records the size of the tokenizer, and on how much text it was trained, if it was."""
    if not trained.is_trained:
        return
    asked = asked_tokens(resolved.config)
    text = "it is that of the same rows in an earlier job"
    if trained.total_bytes:
        text = f"trained on {trained.num_bytes:,} bytes of text"
        if trained.num_bytes < trained.total_bytes:
            text += f", drawn from {trained.total_bytes:,}"
    if trained.num_tokens < asked:
        text += f"; {asked:,} were asked for, but the text has no more pairs that occur twice"
    value = f"{trained.num_tokens:,} tokens"
    resolved.resolutions.append(Resolution(field="base_model.tokenizer", value=value, reason=text))
