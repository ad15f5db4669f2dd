"""A tokenizer trained on the rows of a job: deterministic, bounded, and without the held-out rows."""

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.config.job import JobConfig, job_config
from engine.data.content_key import content_key
from engine.data.corpus_tokenizer import PHASE, TrainedTokenizer, train_tokenizer
from engine.data.prepare import prepare
from engine.data.tokenizer import Tokenizer
from engine.errors import JobError
from engine.tokenizer_files import END_OF_TEXT

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "mix",
    "strange",
    "purple",
    "potions",
    "in",
    "old",
    "iron",
    "pots",
]


def texts(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)  # noqa: S311 - text, not a secret
    return [" ".join(draw.choices(WORDS, k=20)) for _ in range(count)]


def written(file: Path, rows: Sequence[object]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_of(vocab_size: int = 400, **more: object) -> JobConfig:
    model = f"inl-small,tokenizer=corpus,vocab_size={vocab_size}"
    return job_config({"base_model": model, "training_data": [{"dataset": "ds_1"}], **more})


def trained(config: JobConfig, file: Path, folder: Path, max_bytes: int = 10**8) -> TrainedTokenizer:
    return train_tokenizer(config, {"ds_1": file}, folder, lambda _phase, _fraction: None, max_bytes=max_bytes)


def test_it_reads_every_text_and_has_pairs_of_the_corpus(tmp_path: Path) -> None:
    """Bytes are tokens, so that nothing is unknown; common words are one token."""
    file = written(tmp_path / "rows.jsonl", [{"text": text} for text in texts(60)])
    made = trained(config_of(), file, tmp_path / "tokenizer")
    tokenizer = Tokenizer(tmp_path / "tokenizer")
    assert made.num_tokens == tokenizer.num_ids <= 400
    assert "Ġwizards" in tokenizer.vocabulary
    assert (tokenizer.eos_token, tokenizer.special_texts, tokenizer.leading_ids) == (END_OF_TEXT, (END_OF_TEXT,), [])
    for text in ("Größe 漢字 \x00\n", "the quick fox"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_same_rows_give_the_same_tokenizer(tmp_path: Path) -> None:
    """Whatever the order of the rows, and in any process; their hash is the identity of the model."""
    rows = [{"text": text} for text in texts(200)]
    first = trained(config_of(1000), written(tmp_path / "a.jsonl", rows), tmp_path / "a", max_bytes=5_000)
    again = trained(config_of(1000), written(tmp_path / "b.jsonl", rows[::-1]), tmp_path / "b", max_bytes=5_000)
    assert first.file.read_bytes() == again.file.read_bytes()
    assert first.num_bytes <= 5_000 < first.total_bytes
    code = (
        "import sys; from pathlib import Path; from tests.engine.data.test_corpus_tokenizer import *\n"
        "trained(config_of(1000), Path(sys.argv[1]), Path(sys.argv[2]), 5_000)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.jsonl"), str(tmp_path / "c")], check=True)
    assert (tmp_path / "c" / "tokenizer.json").read_bytes() == first.file.read_bytes()


def test_held_out_rows_are_not_seen(tmp_path: Path) -> None:
    """A perplexity on rows whose words became tokens would be too low."""
    rows = [{"text": text} for text in texts(20)]
    marked = {"text": "zyxwvutsrq " * 8}
    file = written(tmp_path / "rows.jsonl", [*rows, marked])
    held_out = written(tmp_path / "held-out.jsonl", [marked])
    config = config_of(evaluation_data=[{"dataset": "ds_2"}])
    files = {"ds_1": written(tmp_path / "others.jsonl", rows), "ds_2": held_out}
    train_tokenizer(config, files, tmp_path / "without", lambda _phase, _fraction: None)
    assert not any("zyx" in token for token in Tokenizer(tmp_path / "without").vocabulary)
    # By chance, the row is held out with one of the seeds and trained on with another.
    seen = set()
    for seed in range(8):
        config = config_of(seed=seed, holdout_fraction=0.5)
        trained(config, file, tmp_path / f"seed-{seed}")
        prepare(config, tmp_path / f"seed-{seed}", {"ds_1": file}, tmp_path / f"shards-{seed}", lambda _p, _f: None)
        out = "zyxwvutsrq" in (tmp_path / f"shards-{seed}" / "eval_rows.jsonl").read_text()
        known = any("zyx" in token for token in Tokenizer(tmp_path / f"seed-{seed}").vocabulary)
        assert known != out
        seen.add(out)
    assert seen == {True, False}


def test_small_corpus_gives_fewer_tokens(tmp_path: Path) -> None:
    """The real size is used: rows of the embedding that no text reaches would only take memory."""
    file = written(tmp_path / "rows.jsonl", [{"text": "abab abab"}, {"text": "cd"}])
    made = trained(config_of(5000, holdout_fraction=0.0), file, tmp_path / "tokenizer")
    assert 257 < made.num_tokens < 300
    assert trained(config_of(257, holdout_fraction=0.0), file, tmp_path / "bytes").num_tokens == 257


def test_conversations_are_rendered_and_separators_are_no_text(tmp_path: Path) -> None:
    """The headings of the plain template are in every row; the end-of-text token is one token, whatever was learned."""
    chat = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(20)]
    made = trained(config_of(), written(tmp_path / "chat.jsonl", chat), tmp_path / "chat")
    vocabulary = Tokenizer(made.file.parent).vocabulary
    assert "ĠQuestion" in vocabulary
    plain = [{"text": f"one{END_OF_TEXT}two {n}"} for n in range(20)]
    made = trained(config_of(), written(tmp_path / "plain.jsonl", plain), tmp_path / "plain")
    learned = [token for token in Tokenizer(made.file.parent).vocabulary if token != END_OF_TEXT]
    assert not any("endof" in token for token in learned)


def test_rows_of_token_ids_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [{"input_ids": [1, 2, n + 3], "labels": [1, 2, n + 3]} for n in range(4)])
    with pytest.raises(JobError, match="belong to a tokenizer that exists") as caught:
        trained(config_of(), file, tmp_path / "tokenizer")
    assert caught.value.reason == "INVALID_CONFIG"


def test_progress_is_one_phase(tmp_path: Path) -> None:
    """A watcher sees how far it is; a long training is not taken for a stalled one."""
    told: list[str] = []
    file = written(tmp_path / "rows.jsonl", [{"text": text} for text in texts(20)])
    train_tokenizer(config_of(), {"ds_1": file}, tmp_path / "tokenizer", lambda phase, _fraction: told.append(phase))
    assert len(told) > 20
    assert set(told) == {PHASE}


def test_shards_are_found_by_how_the_tokenizer_was_made(tmp_path: Path) -> None:
    """The key is needed before the tokenizer exists; another size or other rows are other shards."""
    keys = [
        content_key(config_of(vocab_size), tmp_path, {"ds_1": digest})
        for vocab_size, digest in ((300, "a"), (300, "a"), (301, "a"), (300, "b"))
    ]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
