"""The tokens of GGUF files whose tokenizer is of SentencePiece's kind are those of the training."""

from pathlib import Path

import pytest
from gguf import GGUFReader

from engine.data.tokenizer import Tokenizer
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.gguf_files import convert
from services.exporter.worker.sentencepiece_tokens import SentencePieceTokens, is_sentencepiece, set_scores
from tests.servers.llama_cpp import FOLDERS, LlamaCppServer
from tests.tiny_models import make_tiny_llama

TEXTS = (
    "What does this function do?",
    " leading and  double   spaces ",
    "Return True\n\n\tif the path exists",
    "<|im_start|>user\nGrüße, 日本語 🙂<|im_end|>\n<|im_start|>assistant\n",
    "<|im_end|><|im_end|> x<|im_start|>",
    "0123456789 42 3.14",
    "",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture
def converted(export_input: ExportInput, model: Path, tmp_path: Path) -> Path:
    """The file as llama.cpp's converter makes it."""
    file = tmp_path / "model.gguf"
    convert(export_input, model, file, "f32", lambda: None)
    return file


def test_scores_follow_the_merges(converted: Path, model: Path) -> None:
    """Without the vocabulary's own file llama.cpp's converter gives all tokens the same score, and llama.cpp then reads
    other tokens than the model was trained on."""
    tokenizer = Tokenizer(model)
    expected = [list(tokenizer.encode(text).ids) for text in TEXTS]
    assert is_sentencepiece(GGUFReader(converted))
    before = SentencePieceTokens.of(GGUFReader(converted))
    assert [before.encode(text) for text in TEXTS] != expected
    set_scores(GGUFReader(converted, "r+"), model / "tokenizer.json")
    after = SentencePieceTokens.of(GGUFReader(converted))
    assert [after.encode(text) for text in TEXTS] == expected


@pytest.mark.long
@pytest.mark.skipif(not FOLDERS, reason="llama.cpp's server is not installed; `make test-long` installs it")
@pytest.mark.parametrize("scored", [True, False])
def test_llama_cpp_makes_the_same_tokens(converted: Path, model: Path, tmp_path: Path, scored: bool) -> None:
    """The check would otherwise refuse files that are right, or accept others."""
    if scored:
        set_scores(GGUFReader(converted, "r+"), model / "tokenizer.json")
    tokens = SentencePieceTokens.of(GGUFReader(converted))
    server = LlamaCppServer(converted, tmp_path / "server.log")
    try:
        for text in TEXTS:
            asked = {"content": text, "add_special": False, "parse_special": True}
            assert server.ask("/tokenize", asked)["tokens"] == tokens.encode(text), text
    finally:
        server.stop()
